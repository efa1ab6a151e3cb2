"""LP-FT: its two stages are a run of a linear probe and one of fine-tuning; the schedule; what it cannot serve."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly, same, trained

from sft_hf.core.errors import RecipeError
from sft_hf.engine import loop
from sft_hf.techniques.transfer.lp_ft import two_stages

SHORT = {"data__max_train_samples": 8, "data__max_validation_samples": 6, "data__max_test_samples": 6}
SHORT |= {"eval__baseline": "none", "eval__load_best_model_at_end": False, "train__logging_steps": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def weights(result):
    return load_file(Path(result.output_dir) / "model" / "model.safetensors")


def rates(result):
    lines = map(json.loads, (Path(result.output_dir) / "log.jsonl").read_text().splitlines())
    return [line["learning_rate"] for line in lines if "grad_norm" in line]


def test_the_second_schedule_begins_where_the_first_ends():
    schedule = two_stages(lambda step: 100.0 + step, 3, 7.0)
    assert [schedule(step) for step in range(6)] == [7.0, 7.0, 7.0, 100.0, 101.0, 102.0]


def test_it_is_a_linear_probe_and_then_a_fine_tuning_of_what_it_gave(make_recipe, tmp_path):
    """Every step takes all rows, so that two runs see the same as one; SGD without momentum keeps nothing between."""
    options = {
        "optim__name": "sgd",
        "optim__args": {"momentum": 0.0},
        "optim__weight_decay": 0.0,
        "model__config_overrides": NO_DROPOUT,
        **SHORT,
    }
    settings = {"name": "lp_ft", "probe_fraction": 0.4, "probe_learning_rate": 0.5}
    fine = {"optim__learning_rate": 0.1, "optim__warmup_ratio": 0.5, "optim__lr_scheduler_type": "linear"}
    both = briefly(
        make_recipe(techniques=[settings], train__max_steps=5, output_dir=str(tmp_path / "both"), **fine, **options)
    )
    constant = {"optim__learning_rate": 0.5, "optim__lr_scheduler_type": "constant"}
    probe = briefly(
        make_recipe(
            train__freeze=["backbone"],
            train__frozen_features="off",
            train__max_steps=2,
            output_dir=str(tmp_path / "probe"),
            **constant,
            **options,
        )
    )
    fine = {**fine, "model__name": str(probe.output_dir / "model")}
    second = briefly(make_recipe(train__max_steps=3, output_dir=str(tmp_path / "second"), **fine, **options))
    assert rates(both)[:1] == [0.5] and rates(both)[2:] == rates(second)
    expected = weights(second)
    for name, tensor in weights(both).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_the_backbone_stands_still_and_runs_as_in_evaluation_while_the_head_is_probed(make_image_recipe, tmp_path):
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = TimmWrapperConfig(
        architecture="test_efficientnet", num_labels=5, pretrained_cfg={**shape, "interpolation": "bilinear"}
    )
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "timm")
    seen = []

    class Watched(Exception):
        pass

    def watch(training, *arguments):
        seen.append({name: tensor.clone() for name, tensor in training.model.state_dict().items()})
        if len(seen) == 6:
            raise Watched
        return step(training, *arguments)

    step = loop.train_step
    recipe = make_image_recipe(
        model__name=str(tmp_path / "timm"),
        techniques=[{"name": "lp_ft", "probe_fraction": 0.5}],
        train__max_steps=6,
        train__num_train_epochs=1,
        optim__weight_decay=0.5,
        optim__warmup_ratio=0.0,
        **SHORT,
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Watched):
        patch.setattr(loop, "train_step", watch)
        briefly(recipe)
    for place, (before, after) in enumerate(itertools.pairwise(seen)):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if place < 3:  # batch norm's statistics, which weight decay would not even touch, included
            assert moved == {"timm_model.classifier.weight", "timm_model.classifier.bias"}
        else:
            assert {"timm_model.conv_stem.weight", "timm_model.bn1.running_mean"} <= moved


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (
            "make_speech_recipe",
            {},
            "lp_ft does not support this model: WhisperForConditionalGeneration has no new head",
        ),
        ("make_recipe", {"train__freeze": ["classifier"]}, "there is nothing to train in the head, for the first"),
    ],
)
def test_without_a_head_to_train_it_is_refused_in_one_line(request, make, changes, words):
    recipe = request.getfixturevalue(make)(techniques=["lp_ft"], **changes)
    with pytest.raises(RecipeError, match=words) as caught:
        briefly(recipe)
    assert "\n" not in str(caught.value)
    assert not Path(recipe.output_dir).exists()


def test_with_a_frozen_backbone_the_run_is_a_linear_probe_as_without_it(make_recipe, caplog):
    with caplog.at_level("INFO", logger="sft_hf"):
        with_it = trained(make_recipe(techniques=["lp_ft"], train__freeze=["backbone"]), outputs=())
    assert "lp_ft has no effect" in caplog.text
    without = trained(make_recipe(train__freeze=["backbone"]), outputs=(), overwrite=True)
    assert same(with_it.training.model.state_dict(), without.training.model.state_dict())


def test_it_does_not_go_with_gradual_unfreezing(make_recipe):
    with pytest.raises(RecipeError, match="lp_ft and gradual_unfreezing both decide"):
        make_recipe(techniques=["lp_ft", "gradual_unfreezing"])
