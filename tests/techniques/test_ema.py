"""The moving average of the weights: its mathematics, and that it is what is evaluated, kept as the best, and saved."""

from __future__ import annotations

import json

import pytest
import torch
from moving_model import model_with_statistics, move
from safetensors.torch import load_file
from small_runs import briefly
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sft_hf.techniques.regularization.ema import Ema, decay_at, update
from sft_hf.techniques.regularization.settings import EmaSettings

SHORT = {
    "train__max_steps": 4,
    "train__per_device_train_batch_size": 8,
    "data__max_train_samples": 32,
    "eval__baseline": "none",
    "eval__eval_steps": 1,
    "checkpoint__save_steps": 1,
    "checkpoint__save_total_limit": 9,
}
EMA = [{"name": "ema", "decay": 0.15}]


def test_it_is_what_torch_averages():
    model = model_with_statistics()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    theirs.update_parameters(model)  # the first time it copies
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(5):
        move(model, step)
        theirs.update_parameters(model)
        update(average, model.state_dict(), 0.8)
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(average[name], tensor)
    assert average["1.num_batches_tracked"] == model[1].num_batches_tracked == 5


def test_it_forgets_its_beginning_and_reaches_the_decay():
    assert [decay_at(step, 0.999) for step in (1, 2, 8)] == [2 / 11, 3 / 12, 9 / 18]
    assert decay_at(100_000, 0.999) == 0.999


def test_frozen_weights_are_not_averaged_and_the_state_comes_back():
    model = model_with_statistics()
    model[0].bias.requires_grad_(False)
    first, second = Ema(EmaSettings(), None), Ema(EmaSettings(), None)
    first.prepare_model(model)
    move(model, 1)
    first.after_step(model, 1)
    assert "0.bias" not in first.evaluated_weights(model)
    second.prepare_model(model)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    assert all(torch.equal(second.average[name], tensor) for name, tensor in first.average.items())


def trained(folder, step):
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def averages(folder, step):
    state = load_file(folder / "checkpoints" / f"step-{step:06d}" / "techniques.safetensors")
    return {name.removeprefix("ema/"): tensor for name, tensor in state.items()}


@pytest.fixture
def run(make_recipe, tmp_path):
    """Returns a function that trains four steps into a folder."""

    def train(name, **changes):
        return briefly(make_recipe(output_dir=str(tmp_path / name), **{**SHORT, **changes}))

    return train


def test_the_average_is_evaluated_and_saved_and_training_goes_on_with_the_weights(run):
    plain = run("plain", eval__load_best_model_at_end=False)
    ema = run("ema", eval__load_best_model_at_end=False, techniques=EMA)
    folder = ema.output_dir
    for step in range(2, 5):
        before, after, weights = averages(folder, step - 1), averages(folder, step), trained(folder, step)
        for name in weights:
            torch.testing.assert_close(after[name], 0.15 * before[name] + 0.85 * weights[name], rtol=1e-4, atol=1e-6)
        same = trained(plain.output_dir, step)
        assert all(torch.equal(weights[name], same[name]) for name in weights)
    saved, kept = load_file(folder / "model" / "model.safetensors"), averages(folder, 4)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in saved.items())
    assert not torch.equal(saved["classifier.weight"], trained(folder, 4)["classifier.weight"])
    evaluated = [json.loads(line).get("eval_loss") for line in (folder / "log.jsonl").read_text().splitlines()]
    assert evaluated[-1] == pytest.approx(ema.metrics["validation"]["loss"])
    assert evaluated[-1] != pytest.approx(plain.metrics["validation"]["loss"])


def test_the_best_model_is_an_average(run, monkeypatch):
    from sft_hf.tasks.classification_scorer import ClassificationScorer

    plain, first = ClassificationScorer.score, iter([0.9])

    def score(self, outputs, examples, confidence_samples=0):
        metrics = plain(self, outputs, examples, confidence_samples)
        return metrics if confidence_samples else {**metrics, "accuracy": next(first, 0.1)}

    monkeypatch.setattr(ClassificationScorer, "score", score)
    ema = run("ema", techniques=EMA)
    assert ema.metrics["train"]["best_step"] == 1
    saved = load_file(ema.output_dir / "model" / "model.safetensors")
    kept = averages(ema.output_dir, 1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in saved.items())
    assert not torch.equal(saved["classifier.weight"], trained(ema.output_dir, 1)["classifier.weight"])
