"""ReLU6 behind batch norm: torch's own bits, and NaN where torch has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft_hf.models.cpu import relu6
from sft_hf.models.cpu.convolutions import with_fast_backward


class Net(nn.Module):
    def __init__(self, act, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm, self.act = nn.BatchNorm2d(channels), act

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.fixture
def taken(monkeypatch):
    """How often ReLU6 was taken from torch."""
    found, real = [], relu6._Clamp.apply
    monkeypatch.setattr(relu6._Clamp, "apply", lambda x: found.append(1) or real(x))
    return found


def trained(fast, act, dtype=torch.bfloat16, change=None, training=True):
    """The output, the gradients and the running statistics of one pass."""
    torch.manual_seed(0)
    net, x = Net(act).train(training), torch.randn(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        net.norm.weight.mul_(4)  # so that values lie on both sides of 0 and 6
        net.norm.bias.fill_(3)
        if change:
            change(net, x)
    if fast:
        with_fast_backward(net)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = net(x)
    (y.float() * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [y.detach(), *(parameter.grad for parameter in net.parameters()), *net.norm.buffers()]


def test_every_number_that_bf16_has_is_clamped_as_torch_does():
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = patterns[~patterns.isnan()]
    assert len(numbers) > 65000 and numbers.isinf().sum() == 2
    assert torch.equal(relu6._Clamp.apply(numbers.clone()), nn.functional.hardtanh(numbers, 0.0, 6.0))


def test_outputs_gradients_and_statistics_have_the_same_bits(taken):
    plain = trained(False, nn.ReLU6(inplace=True))
    assert not taken
    fast = trained(True, nn.ReLU6(inplace=True))
    assert taken
    assert 0 < float((plain[0] == 6).float().mean()) < 0.9 and (plain[0] == 0).any()
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


def poison_input(net, x):
    x[2, 1, 5, 5] = float("nan")


def poison_weight(net, x):
    net.norm.weight[3] = float("nan")


def poison_bias(net, x):
    net.norm.bias[3] = float("nan")


def infinite_input(net, x):
    x[2, 1, 5, 5] = float("inf")


@pytest.mark.parametrize("change", [poison_input, poison_weight, poison_bias, infinite_input])
def test_what_is_no_number_stays_none(change):
    plain, fast = (trained(on, nn.ReLU6(inplace=True), change=change)[0] for on in (False, True))
    assert plain.isnan().any()
    assert torch.equal(plain.isnan(), fast.isnan())


@pytest.mark.parametrize(
    ("act", "dtype", "training"),
    [
        (nn.ReLU6(inplace=True), torch.float32, True),
        (nn.ReLU6(inplace=True), torch.bfloat16, False),  # what running statistics make of NaN is not known
        (nn.ReLU6(), torch.bfloat16, True),
        (nn.Hardtanh(-1.0, 1.0, inplace=True), torch.bfloat16, True),
        (nn.Sequential(nn.Identity(), nn.Hardtanh(0.0, 4.0, inplace=True)), torch.bfloat16, True),
    ],
)
def test_everything_else_is_left_to_torch(act, dtype, training, taken):
    plain, fast = (trained(on, act, dtype, training=training) for on in (False, True))
    assert not taken
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


@pytest.mark.parametrize("change", [torch.mul, torch.Tensor.mul_])
def test_what_something_else_came_between_is_left_to_torch(change, taken):
    class Between(nn.Module):
        def forward(self, x):
            return nn.functional.hardtanh(change(x, float("nan")), 0.0, 6.0, inplace=True)

    assert trained(True, Between())[0].isnan().all()
    assert not taken
