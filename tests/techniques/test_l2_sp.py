"""L2-SP: its gradient against autograd's, which weights are held, and where they end up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from torch import nn

from sft_hf.core.errors import RecipeError
from sft_hf.techniques.transfer.l2_sp import L2Sp, pull
from sft_hf.techniques.transfer.settings import L2SpSettings

SHORT = {"train__max_steps": 6, "data__max_train_samples": 32, "data__max_test_samples": 6, "eval__baseline": "none"}
SHORT |= {"data__max_validation_samples": 6, "eval__load_best_model_at_end": False, "optim__warmup_ratio": 0.0}


class Net(nn.Module):
    """A backbone and a head, told apart as in Transformers."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


def test_the_pull_is_the_gradient_of_the_penalty():
    weights, start = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (0.7 / 2 * (weights - start).square().sum()).backward()
    torch.testing.assert_close(pull(weights.detach(), start, 0.7), weights.grad)


def test_the_backbone_is_pulled_to_its_start_and_the_head_to_zero():
    """Against autograd, with equation 2 and alpha, beta as there: a/2 |w - w0|^2 + b/2 |head|^2."""
    torch.manual_seed(0)
    model = Net()
    model.body.bias.requires_grad_(False)
    technique = L2Sp(L2SpSettings(alpha=0.3, beta=0.2), None)
    technique.prepare_model(model)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    loss = model.head(model.body(torch.ones(5, 3))).square().sum()
    loss.backward()
    technique.change_gradients(model)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    loss = model.head(model.body(torch.ones(5, 3))).square().sum()
    held = 0.3 / 2 * (model.body.weight - start["body.weight"]).square().sum()
    small = 0.2 / 2 * (model.head.weight.square().sum() + model.head.bias.square().sum())
    (loss + held + small).backward()
    assert found["body.bias"] is None
    for name in ("body.weight", "head.weight", "head.bias"):
        torch.testing.assert_close(found[name], model.get_parameter(name).grad)


def test_in_training_the_backbone_stays_nearer_to_the_checkpoint(make_recipe, checkpoint, tmp_path):
    start = {f"bert.{name}": tensor for name, tensor in load_file(Path(checkpoint) / "model.safetensors").items()}
    distances = []
    for name, techniques in {"plain": [], "held": [{"name": "l2_sp", "alpha": 5.0}]}.items():
        # Not clipped, since the pull is a part of the gradient; SGD, since Adam's first steps have one size anyway.
        options = {"optim__name": "sgd", "optim__learning_rate": 0.1, "train__max_grad_norm": 0, **SHORT}
        run = briefly(make_recipe(techniques=techniques, output_dir=str(tmp_path / name), **options))
        found = load_file(run.output_dir / "model" / "model.safetensors")
        assert set(start) <= set(found)
        distances.append(sum(float((found[key] - start[key]).square().sum()) for key in start) ** 0.5)
    assert 0 < distances[1] < 0.7 * distances[0]


def test_weight_decay_towards_zero_pulls_an_adapter_back_as_well(make_recipe):
    recipe = make_recipe()
    recipe.peft = {"peft_type": "LORA"}
    with pytest.raises(RecipeError, match="l2_sp cannot be combined with peft: adapters start at zero"):
        L2SpSettings().check_recipe(recipe)
