"""The functions that a CPU computes otherwise give what torch's give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sft_hf.models.cpu import kernels as cpu_kernels
from sft_hf.models.cpu.kernels import drop, with_cpu_kernels


def in_bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    result.float().square().sum().backward()
    return [result.float(), *(leaf.grad.float() for leaf in leaves)]


def assert_alike(first, second, tolerance=3e-2):
    for a, b in zip(first, second, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_as_often_as_it_says_and_keeps_the_mean(dtype, probability):
    torch.manual_seed(0)
    x = torch.ones(1000, 1000, dtype=dtype, requires_grad=True)
    y = drop(x, probability)
    assert y.dtype == dtype
    assert abs(float((y == 0).float().mean()) - probability) < 0.002
    assert abs(float(y.detach().float().mean()) - 1) < 0.005
    y.float().sum().backward()
    y = y.detach()
    assert torch.equal(x.grad == 0, y == 0)
    kept = y[y != 0].float()
    assert torch.all(kept == kept[0])
    assert abs(float(kept[0]) - 1 / (1 - probability)) < 0.006


def test_masks_are_a_function_of_torchs_seed_and_differ_from_call_to_call():
    x = torch.ones(4096)
    torch.manual_seed(3)
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, drop(x, 0.5)) and not torch.equal(first, second)
    rows = drop(torch.ones(64, 4096), 0.5) == 0  # neighbours, and rows, are independent
    assert abs(float((rows[:, 1:] == rows[:, :-1]).float().mean()) - 0.5) < 0.01
    assert abs(float((rows[1:] == rows[:-1]).float().mean()) - 0.5) < 0.01


def test_dropout_of_nothing_and_of_everything():
    x = torch.randn(7, 3)
    assert drop(x, 0.0) is x
    assert torch.equal(drop(x, 1.0), torch.zeros(7, 3))


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_layer_norm(given):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(8, 64, dtype=given), torch.randn(64), torch.randn(64)
    with in_bf16():
        plain = gradients(lambda *t: functional.layer_norm(t[0], (64,), t[1], t[2]), x, weight, bias)
        ours = gradients(lambda *t: cpu_kernels.layer_norm(t[0], (64,), t[1], t[2]), x, weight, bias)
        assert cpu_kernels.layer_norm(x, (64,), weight, bias).dtype == torch.bfloat16
    assert_alike(ours, plain)


def test_softmax_is_what_the_float32_result_is_rounded_to():
    torch.manual_seed(0)
    x = torch.randn(32, 128).bfloat16()
    with in_bf16():
        plain = functional.softmax(x, dim=-1, dtype=torch.float32)
        ours = cpu_kernels.softmax(x, dim=-1, dtype=torch.float32)
    assert plain.dtype == torch.float32 and torch.equal(ours, plain.bfloat16())
    assert_alike(gradients(lambda t: t.softmax(-1), x.float()), gradients(lambda t: functional.softmax(t, -1), x))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention(mask):
    torch.manual_seed(0)
    heads = [torch.randn(2, 4, 16, 8) for _ in range(3)]
    seen = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    seen[0, :, :, 11:] = False
    masks = {"bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}
    options = {"attn_mask": masks.get(mask), "is_causal": mask == "causal"}
    plain = gradients(lambda *t: functional.scaled_dot_product_attention(*t, **options), *heads)
    with in_bf16():
        ours = gradients(lambda *t: cpu_kernels.attention(*t, **options), *heads)
    assert_alike(ours, plain)


def test_attention_drops_probabilities():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 64, 8), torch.randn(1, 1, 64, 8)
    value = torch.eye(64)[None, None]  # the result is the matrix of probabilities
    with in_bf16():
        result = cpu_kernels.attention(query.requires_grad_(), key, value, dropout_p=0.25)
    assert abs(float((result == 0).float().mean()) - 0.25) < 0.03


class Small(nn.Module):
    """Every function of the table once."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.drop = nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        h = self.drop(self.linear(self.norm(x)))
        return functional.scaled_dot_product_attention(h, h, h), functional.softmax(h, dim=-1, dtype=torch.float32)


def test_a_model_uses_them_in_bf16_alone_and_stops_after_its_forward_pass(monkeypatch):
    called = []
    for function, ours in list(cpu_kernels.KERNELS.items()):
        monkeypatch.setitem(
            cpu_kernels.KERNELS, function, lambda *a, _ours=ours, **k: called.append(_ours.__name__) or _ours(*a, **k)
        )
    model, x = Small(), torch.randn(2, 4, 8)
    names = set(model.state_dict())
    with_cpu_kernels(model)
    model(x)
    assert not called
    with in_bf16():
        model(x)
        assert sorted(called) == ["attention", "dropout", "layer_norm", "softmax"]
        called.clear()
        functional.softmax(x, dim=-1)
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 4, 7))
        functional.layer_norm(x, (8,))
    assert called == ["layer_norm"]  # of the model that failed: nothing is left behind
    assert set(model.state_dict()) == names
