"""The loop: exact accumulation, the same gradient on one process and two, the same bits twice, nothing spoilt."""

from __future__ import annotations

import json

import distributed_gradients
import pytest
import torch
from distributed_gradients import relative_difference, window_gradients
from safetensors.torch import load_file
from small_runs import briefly, prepared
from tiers import long
from two_processes import run_on_two_processes

from sft_hf.core.errors import TrainingError
from sft_hf.engine import process
from sft_hf.engine.loop import train
from sft_hf.engine.state import TrainState

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# A learning rate of almost nothing: the second window meets the same weights as the first.
STILL = {"model__config_overrides": NO_DROPOUT, "optim__name": "sgd", "optim__learning_rate": 1e-30}


def cut(batch_size, accumulation):
    return {
        "train__per_device_train_batch_size": batch_size,
        "train__gradient_accumulation_steps": accumulation,
        "train__max_grad_norm": 0,
        **STILL,
    }


@pytest.fixture(scope="module")
def whole_batch_gradients(request):
    """Filled by the first test that needs them."""
    return {}


def reference(make_recipe, cache):
    if not cache:
        cache.update(window_gradients(make_recipe(**cut(16, 1)))[0])
    return cache


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 4), (1, 16), (8, 2)])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    make_recipe, whole_batch_gradients, batch_size, accumulation
):
    whole = reference(make_recipe, whole_batch_gradients)
    cut_up, _ = window_gradients(make_recipe(**cut(batch_size, accumulation)))
    assert relative_difference(cut_up, whole) < 1e-5


def test_the_reference_gradient_is_that_of_the_mean_loss(make_recipe, whole_batch_gradients):
    """Against Transformers' own loss on the same rows: an independent reference."""
    whole = reference(make_recipe, whole_batch_gradients)
    recipe = make_recipe(**cut(16, 1))
    run = prepared(recipe)
    examples, plan = run.training.data.epoch(0)
    batch = run.task.collate([examples.features[row] for row in plan[-1].rows()])
    run.training.model(**batch).loss.backward()
    own = {f"last.{name}": value.grad for name, value in run.training.model.named_parameters()}
    assert relative_difference(own, {name: whole[name] for name in own}) < 1e-5


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), long((1, 8))])
def test_two_processes_give_the_gradient_of_one(make_recipe, whole_batch_gradients, tmp_path, batch_size, accumulation):
    whole = reference(make_recipe, whole_batch_gradients)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(make_recipe(**cut(batch_size, accumulation)).to_yaml())
    run_on_two_processes(distributed_gradients.__file__, recipe, tmp_path / "gradients")
    for rank in (0, 1):
        assert relative_difference(load_file(tmp_path / f"gradients.rank{rank}"), whole) < 1e-5


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_recipe, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        briefly(make_recipe(output_dir=str(folder), seed=seed))
    first, second, other = (weights(folder) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    rows = [(folder / "predictions.jsonl").read_text() for folder in folders]
    assert rows[0] == rows[1]


def test_sums_of_an_indexed_gradient_come_out_the_same_with_two_threads():
    """As of Whisper's decoder positions, which differed in the last bit from run to run."""
    process.build_accelerator("no", 2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 384, generator=generator, requires_grad=True)
    rows = torch.arange(16).repeat(256)
    values = torch.randn(len(rows), 384, generator=generator)
    found = []
    for _ in range(20):
        weight.grad = None
        (weight[rows] * values).sum().backward()
        found.append(weight.grad.clone())
    assert all(torch.equal(gradient, found[0]) for gradient in found)


def test_bf16_on_the_cpu_trains_too(make_recipe):
    result = briefly(make_recipe(train__mixed_precision="bf16"))
    assert result.metrics["environment"]["mixed_precision"] == "bf16"
    assert result.metrics["test"]["accuracy"] > 0.8


def spoilt_run(make_recipe, spoil):
    recipe = make_recipe(**STILL, optim__weight_decay=0.0)
    run = prepared(recipe)
    before = {name: value.detach().clone() for name, value in run.training.model.named_parameters()}
    spoil(run)
    with pytest.raises(TrainingError) as caught:
        train(run.training, TrainState())
    after = dict(run.training.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    return str(caught.value)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_row(make_recipe):
    def spoil(run):
        plain = run.task.losses
        examples, plan = run.training.data.epoch(0)
        victim = plan[0].rows()[3]
        marked = examples.features[victim]["input_ids"].tolist()

        def losses(model, batch):
            values = plain(model, batch)
            rows = [[i for i in row.tolist() if i] for row in batch["input_ids"]]
            return torch.stack([v * float("nan") if r == marked else v for r, v in zip(rows, values, strict=True)])

        run.task.losses = losses
        run.victim = int(examples.row_ids[victim])
        spoil.victim = run.victim

    message = spoilt_run(make_recipe, spoil)
    assert f"[{spoil.victim}]" in message
    assert "step 1" in message


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_recipe):
    def spoil(run):
        run.training.model.classifier.bias.register_hook(lambda grad: grad * float("inf"))

    message = spoilt_run(make_recipe, spoil)
    assert "gradient of step 1" in message


def test_the_log_has_what_a_plot_needs(make_recipe):
    result = briefly(make_recipe(train__logging_steps=2))
    lines = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    wanted = {"step", "epoch", "loss", "learning_rate", "grad_norm", "examples_per_second"}
    assert all(wanted <= line.keys() for line in steps)
    assert steps[-1]["step"] == result.metrics["train"]["num_steps"]
    assert steps[-1]["learning_rate"] == 0.0
    assert steps[-1]["epoch"] == 2.0
    assert steps[0]["loss"] > steps[-1]["loss"]
    evaluations = [line for line in lines if "eval_accuracy" in line]
    assert [line["step"] for line in evaluations] == [11, 22] and "eval_loss" in evaluations[0]


@pytest.mark.parametrize(("steps", "logged"), [(6, list(range(1, 7))), long((50, [10, 20, 30, 40, 50]))])
def test_short_runs_log_each_step(make_recipe, steps, logged):
    result = briefly(make_recipe(train__max_steps=steps, eval__baseline="none"))
    lines = [json.loads(line) for line in (result.output_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == logged


def test_max_steps_and_fractions_of_epochs_end_the_run_where_they_say(make_recipe, tmp_path):
    one = briefly(make_recipe(train__max_steps=3, output_dir=str(tmp_path / "one")))
    assert one.metrics["train"]["num_steps"] == 3
    half = briefly(make_recipe(train__num_train_epochs=0.5, output_dir=str(tmp_path / "half")))
    assert half.metrics["train"]["num_steps"] == 6  # of 11 in an epoch
    assert half.metrics["train"]["num_epochs"] == pytest.approx(48 / 81, abs=1e-4)
