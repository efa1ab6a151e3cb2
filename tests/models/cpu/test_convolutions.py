"""Gradients of depthwise convolutions, against torch's own in double precision."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sft_hf import finetune
from sft_hf.models.cpu import convolutions as depthwise

CASES = [(k, s, p, size) for k in (3, 5) for s in (1, 2) for p in (0, 1, k // 2) for size in (7, 8, 13)]


def tensors(k, s, p, size, dtype):
    generator = torch.Generator().manual_seed(k + 10 * s + size)
    x = torch.randn(3, 8, size, size + 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 1, k, k, generator=generator, dtype=torch.float64)
    y = torch.conv2d(x, weight, stride=s, padding=p, groups=8)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return [value.to(dtype) for value in (x, weight, grad)]


@pytest.mark.parametrize(("k", "s", "p", "size"), CASES)
def test_both_gradients_are_those_of_the_definition(k, s, p, size):
    x, weight, grad = tensors(k, s, p, size, torch.float64)
    x.requires_grad_()
    weight.requires_grad_()
    torch.conv2d(x, weight, stride=s, padding=p, groups=8).backward(grad)
    found = depthwise.input_gradient(grad, weight.detach(), x.shape, s, p)
    torch.testing.assert_close(found, x.grad, rtol=1e-10, atol=1e-10)
    found = depthwise.weight_gradient(grad, x.detach(), weight.detach(), s, p)
    torch.testing.assert_close(found, weight.grad, rtol=1e-10, atol=1e-10)


class Net(torch.nn.Module):
    def __init__(self, k, s, bias):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, k, s, k // 2, groups=8, bias=bias)

    def forward(self, x):
        return self.conv(x).float().square().sum()


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_model_in_bf16_has_gradients_as_good_as_torchs(k, s, bias):
    def gradients(fast, precise=False):
        torch.manual_seed(0)
        net, x = Net(k, s, bias), torch.randn(2, 8, 12, 12, requires_grad=True)
        if fast:
            depthwise.with_fast_backward(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            loss = net(x)
        loss.backward()
        return [x.grad, *(parameter.grad for parameter in net.parameters())]

    exact, plain, fast = gradients(False, precise=True), gradients(False), gradients(True)
    for true, slow, quick in zip(exact, plain, fast, strict=True):
        assert quick.dtype == true.dtype
        error = float((quick - true).norm() / true.norm())
        assert error < max(1.5 * float((slow - true).norm() / true.norm()), 0.01)


def test_it_is_used_where_it_is_for_and_nowhere_else(monkeypatch):
    used = []
    real = depthwise.input_gradient
    monkeypatch.setattr(depthwise, "input_gradient", lambda *a: used.append(1) or real(*a))
    for k, s, dtype, expected in ((5, 1, torch.bfloat16, 1), (3, 2, torch.bfloat16, 1), (3, 1, torch.bfloat16, 0)):
        net = Net(k, s, False)
        depthwise.with_fast_backward(net)
        used.clear()
        with torch.autocast("cpu", dtype):
            net(torch.randn(1, 8, 9, 9, requires_grad=True)).backward()
        assert len(used) == expected
    used.clear()
    net(torch.randn(1, 8, 9, 9, requires_grad=True)).backward()  # float32
    assert not used


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_convolutional_network_trains_with_it_unless_activations_are_recomputed(
    recomputed, make_image_recipe, tmp_path, monkeypatch
):
    timm = pytest.importorskip("timm", reason="timm makes the network")
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    model = {"name": str(tmp_path / "w.pth"), "architecture": "tf_efficientnet_lite0"}
    used = []
    real = depthwise.weight_gradient
    monkeypatch.setattr(depthwise, "weight_gradient", lambda *a: used.append(1) or real(*a))
    train = {"max_steps": 1, "num_threads": 1, "mixed_precision": "bf16", "gradient_checkpointing": recomputed}
    result = finetune(make_image_recipe(model=model, train=train))
    assert bool(used) != recomputed
    assert all(
        torch.isfinite(tensor).all() for tensor in load_file(result.output_dir / "model/model.safetensors").values()
    )
