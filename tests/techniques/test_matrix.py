"""Every technique with every task: it trains, resumes to the same bits, goes with accumulation and with another one."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import prepared
from tiers import quick

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.component_settings import CLAIMS
from sft_hf.core.recipe.registry import component_names, load_component, load_settings
from sft_hf.core.recipe.sections import DataSection, TrainSection
from sft_hf.engine import loop
from sft_hf.engine.state import TrainState
from sft_hf.jobs.finetune import finetune

TASKS = ("text", "image", "whisper", "ctc")
WRITTEN = ("model",)  # no card, no report: they are not what is tested here
COMPANIONS = ("label_smoothing", "ema", "l2_sp", "sam")


@pytest.fixture
def recipes(make_recipe, make_image_recipe, make_speech_recipe, wav2vec2_checkpoint):
    """{task: a function that makes a recipe of two short steps}."""

    def make_ctc_recipe(**changes):
        return make_speech_recipe(model__name=str(wav2vec2_checkpoint), **changes)

    makers = {"text": make_recipe, "image": make_image_recipe, "whisper": make_speech_recipe, "ctc": make_ctc_recipe}
    short = {
        "train__max_steps": 2,
        "train__per_device_train_batch_size": 4,
        "train__gradient_accumulation_steps": 2,
        "checkpoint__save_steps": 1,
        "checkpoint__save_total_limit": 5,
        "eval__eval_steps": 1,
        "eval__baseline": "none",
        "data__max_train_samples": 16,
        "data__max_validation_samples": 6,
        "data__max_test_samples": 6,
        "optim__warmup_ratio": 0.0,
    }
    return {task: lambda make=make, **changes: make(**{**short, **changes}) for task, make in makers.items()}


def settings_of(name, **changes):
    return {"name": name, **load_settings("techniques", name).example, **changes}


def reason_against(name, task):
    """Why a technique does not serve a task, as it says itself; None if it does."""
    settings = load_settings("techniques", name)
    modality = task if task in ("text", "image") else "speech"
    excluded = settings.excluded.get(modality) or settings.excluded.get(task)
    if task == "ctc" and settings.needs_items:
        return excluded or "CTC sums over all alignments"
    return excluded or ("has no new head" if task == "whisper" and settings.needs_head else None)


def companion_of(name, task):
    """A second technique that goes with this one."""
    claims = load_settings("techniques", name).claims
    for other in COMPANIONS:
        if other != name and not claims & load_settings("techniques", other).claims and not reason_against(other, task):
            return other
    raise AssertionError(f"nothing goes with {name}")


def result_of(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


CASES = [(name, task) for name in component_names("techniques") for task in TASKS]
SERVED = [case for case in CASES if not reason_against(*case)]
# Of each technique one task, each time the same.
FEW = [
    min((case for case in SERVED if case[0] == name), key=lambda case: zlib.crc32(" ".join(case).encode()))
    for name in component_names("techniques")
]


@pytest.mark.parametrize(("name", "task"), [case for case in CASES if case not in SERVED])
def test_a_task_that_is_not_served_is_refused(name, task, recipes):
    reason = reason_against(name, task)
    with pytest.raises(RecipeError, match=reason[:40].replace("(", ".").replace(")", ".")):
        finetune(recipes[task](techniques=[settings_of(name)]))


def several() -> list[tuple[str, list[str]]]:
    """Every technique once, on the task of its case in FEW: groups of up to four that exclude each other in nothing."""
    groups: list[tuple[str, list[str]]] = []
    for name, task in FEW:
        claims = load_settings("techniques", name).claims
        for other_task, names in groups:
            taken = frozenset().union(*(load_settings("techniques", other).claims for other in names))
            if other_task == task and len(names) < 4 and not claims & taken:
                names.append(name)
                break
        else:
            groups.append((task, [name]))
    return groups


@pytest.mark.parametrize(("task", "names"), several(), ids=lambda value: value if value in TASKS else "+".join(value))
def test_several_in_one_run(task, names, recipes, tmp_path):
    check_resumed([settings_of(name) for name in names], task, recipes, tmp_path)


@pytest.mark.parametrize(("name", "task"), quick([], SERVED))
def test_matrix(name, task, recipes, tmp_path):
    check_resumed([settings_of(name), settings_of(companion_of(name, task))], task, recipes, tmp_path)


def check_resumed(both, task, recipes, tmp_path):
    """A run of these techniques trains, and resumes to the same bits."""
    whole = finetune(recipes[task](techniques=both, output_dir=str(tmp_path / "whole")), outputs=WRITTEN)
    assert all(torch.isfinite(tensor).all() for tensor in result_of(whole.output_dir).values())

    recipe = recipes[task](techniques=both, output_dir=str(tmp_path / "cut"))
    shutil.copytree(whole.output_dir, tmp_path / "cut")
    forget_all_after_the_first_step(tmp_path / "cut")
    resumed = finetune(recipe, outputs=WRITTEN, resume=True)
    assert same(result_of(whole.output_dir), result_of(resumed.output_dir))
    assert whole.metrics["test"] == resumed.metrics["test"]


def forget_all_after_the_first_step(folder):
    """Leave a run as a kill after its first step leaves it."""
    for path in folder.iterdir():
        if path.name not in ("recipe.yaml", "log.jsonl", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "checkpoints" / "step-000002")


NO_DROPOUT = {  # two rows beside each other are padded to one width, and masks of another shape are other masks
    "text": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "image": {},
    "whisper": {},
    "ctc": {},
}
NEUTRAL = [
    (name, task)
    for name, task in SERVED
    if load_settings("techniques", name).neutral is not None
    # wav2vec2's first layer normalizes over time, padding included, and that is wider with a partner
    if not (task == "ctc" and load_settings("techniques", name).needs_partner)
]


def weights_after_two_steps(recipe):
    """As they would be scored, averages and all; nothing is scored or written."""
    run = prepared(recipe)
    training = replace(run.training, evaluate=lambda _: False, save=lambda _: None, log=lambda _: None)
    loop.train(training, TrainState())
    model = run.accelerator.unwrap_model(training.model)
    with training.techniques.evaluated(model):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def plain_weights():
    """{task: weights of the plain run}, filled by the first test that needs them."""
    return {}


@pytest.mark.parametrize(("name", "task"), quick([case for case in NEUTRAL if case in FEW], NEUTRAL))
def test_at_zero_strength_it_is_plain_training(name, task, recipes, plain_weights):
    neutral = settings_of(name, **load_settings("techniques", name).neutral)
    # SGD, because Adam's first updates have one size whatever the gradient's: rounding would show.
    options = {"optim__name": "sgd", "optim__learning_rate": 0.1, "model__config_overrides": NO_DROPOUT[task]}
    if task not in plain_weights:
        plain_weights[task] = weights_after_two_steps(recipes[task](**options))
    first, second = plain_weights[task], weights_after_two_steps(recipes[task](techniques=[neutral], **options))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", component_names("techniques"))
def test_it_explains_itself(name):
    cls, settings = load_component("techniques", name), load_settings("techniques", name)
    assert settings.model_fields["name"].default == name
    assert cls.paper and cls.__doc__.splitlines()[0].endswith(".")
    assert all(field.description for key, field in settings.model_fields.items() if key != "name")
    modalities = {load_settings("tasks", task).modality for task in component_names("tasks")}
    assert set(settings.excluded) <= {"peft", "ctc", "multi_label", "regression", *modalities}
    assert settings.claims <= set(CLAIMS)


RIVALS = [
    {"ema", "swa"},
    {"lp_ft", "gradual_unfreezing"},
    {"layer_drop", "stochastic_depth"},
    {"mixup", "cutmix"},
    {"focal_loss", "generalized_cross_entropy", "bootstrapping"},
    {"class_weights", "logit_adjustment", "balanced_sampling"},
]


@pytest.mark.parametrize(("first", "second"), list(combinations(component_names("techniques"), 2)))
def test_two_techniques_with_one_claim_exclude_each_other(first, second):
    one, other = (
        load_settings("techniques", name).model_validate(
            {"name": name, **({"scales": {"*": 1.0}} if name == "discriminative_learning_rates" else {})}
        )
        for name in (first, second)
    )
    recipe = SimpleNamespace(
        task=load_settings("tasks", "image_classification")(),
        techniques=[one, other],
        peft={},
        train=TrainSection(),
        data=DataSection(name="rows.csv"),
    )
    for settings in (one, other):
        if any({first, second} <= group for group in RIVALS):
            with pytest.raises(RecipeError, match=f"{first}|{second}") as raised:
                settings.check_recipe(recipe)
            assert CLAIMS[next(iter(one.claims & other.claims))] in str(raised.value)
        elif "image" not in settings.excluded:
            settings.check_recipe(recipe)
