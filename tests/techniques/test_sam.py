"""SAM: the way up, the gradient there, and that the weights and running statistics come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import prepared
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.engine.state import TrainState
from sft_hf.engine.step import train_step
from sft_hf.techniques.regularization.sam import Sam, perturbation
from sft_hf.techniques.regularization.settings import SamSettings

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_way_up_is_that_of_the_papers(adaptive):
    generator = np.random.default_rng(0)
    shapes = [(3, 2), (4,)]
    gradients, weights = ([generator.normal(size=shape) for shape in shapes] for _ in range(2))
    found = perturbation([torch.tensor(g) for g in gradients], [torch.tensor(w) for w in weights], 0.3, adaptive)
    g, w = (np.concatenate([part.ravel() for part in parts]) for parts in (gradients, weights))
    scale = np.diag(np.abs(w)) if adaptive else np.eye(len(g))
    expected = 0.3 * scale @ scale @ g / np.sqrt(g @ scale @ scale @ g)
    np.testing.assert_allclose(np.concatenate([part.numpy().ravel() for part in found]), expected, rtol=1e-6)
    if not adaptive:
        assert np.linalg.norm(expected) == pytest.approx(0.3)


class Quadratic(nn.Module):
    """L(w) = 1/2 w'Aw, whose gradient is Aw."""

    def __init__(self):
        super().__init__()
        self.a = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))

    def gradient(self, keep_statistics=True):
        self.weight.grad = None
        loss = self.weight @ self.a @ self.weight / 2
        loss.backward()
        return float(loss.detach())


def sam(**settings):
    return Sam(SamSettings(**settings), None)


def test_by_hand_on_a_quadratic():
    """w = (1, -2): Aw = (1, -3), L = 3.5; e = 0.5 (1, -3) / sqrt 10; the gradient at w + e is A(w + e)."""
    model = Quadratic()
    assert sam(rho=0.5).compute_gradients(model, model.gradient) == 3.5
    step = 0.5 / np.sqrt(10) * np.array([1.0, -3.0])
    expected = np.array([[3.0, 1.0], [1.0, 2.0]]) @ (np.array([1.0, -2.0]) + step)
    np.testing.assert_allclose(model.weight.grad.numpy(), expected, rtol=1e-6)
    assert model.weight.tolist() == [1.0, -2.0]


def test_weights_come_back_where_the_second_pass_fails():
    model = Quadratic()

    def compute(keep_statistics=True):
        if not keep_statistics:
            raise RuntimeError("out of memory")
        return model.gradient()

    with pytest.raises(RuntimeError, match="out of memory"):
        sam(rho=0.5).compute_gradients(model, compute)
    assert model.weight.tolist() == [1.0, -2.0]


def in_training(recipe):
    run = prepared(recipe)
    run.training.model.train()
    examples, plan = run.training.data.epoch(0)
    return run, examples, plan[0]


def test_on_a_model_however_the_step_is_cut(make_recipe):
    """Against two gradients of Transformers' own loss of the same rows."""
    options = {"optim__name": "sgd", "optim__learning_rate": 1e-30, "train__max_grad_norm": 0}
    options |= {"model__config_overrides": NO_DROPOUT, "data__max_train_samples": 16}
    rho = 0.5

    run, examples, window = in_training(make_recipe(train__per_device_train_batch_size=16, **options))
    model = run.training.model
    batch = run.task.collate([examples.features[row] for row in window.rows()])
    model(**batch).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = sum(float(parameter.grad.square().sum()) for parameter in trained) ** 0.5
    with torch.no_grad():
        for parameter in trained:
            parameter += rho / norm * parameter.grad
            parameter.grad = None
    model(**batch).loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in trained])

    for size, accumulation in ((16, 1), (4, 4)):
        cut = {"train__per_device_train_batch_size": size, "train__gradient_accumulation_steps": accumulation}
        run, examples, window = in_training(make_recipe(techniques=[{"name": "sam", "rho": rho}], **cut, **options))
        train_step(run.training, examples, window, TrainState())
        parameters = [parameter for parameter in run.training.model.parameters() if parameter.grad is not None]
        found = torch.cat([parameter.grad.flatten() for parameter in parameters])
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_running_statistics_move_once(make_image_recipe, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8, "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "resnet")
    statistics = []
    for techniques in ([], [{"name": "sam", "rho": 0.5}]):
        recipe = make_image_recipe(
            model__name=str(tmp_path / "resnet"),
            techniques=techniques,
            data__max_train_samples=8,
            train__gradient_accumulation_steps=1,
        )
        run, examples, window = in_training(recipe)
        train_step(run.training, examples, window, TrainState())
        statistics.append(dict(run.training.model.named_buffers()))
    plain, sharp = statistics
    assert plain.keys() == sharp.keys() and plain
    assert all(torch.equal(plain[name], sharp[name]) for name in plain)
    assert any(name.endswith("num_batches_tracked") and value == 1 for name, value in sharp.items())


def test_scaled_gradients_are_refused(make_recipe):
    with pytest.raises(RecipeError, match=r"sam cannot be combined with train\.mixed_precision: fp16"):
        make_recipe(techniques=[{"name": "sam"}], train__mixed_precision="fp16")
