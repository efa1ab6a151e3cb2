"""Depthwise convolutions against double precision; ReLU6 after batch norm against torch's own bits, NaN included."""

from __future__ import annotations

import pytest
import torch
from small_runs import trained
from tiers import long
from torch import nn

from sft_hf.models.cpu import convolutions

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
    found = convolutions.input_gradient(grad, weight.detach(), x.shape, s, p)
    torch.testing.assert_close(found, x.grad, rtol=1e-10, atol=1e-10)
    found = convolutions.weight_gradient(grad, x.detach(), weight.detach(), s, p)
    torch.testing.assert_close(found, weight.grad, rtol=1e-10, atol=1e-10)


class Net(nn.Module):
    def __init__(self, k, s, bias):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, k, s, k // 2, groups=8, bias=bias)

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
            convolutions.with_fast_backward(net)
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
    real = convolutions.input_gradient
    monkeypatch.setattr(convolutions, "input_gradient", lambda *a: used.append(1) or real(*a))
    for k, s, dtype, expected in ((5, 1, torch.bfloat16, 1), (3, 2, torch.bfloat16, 1), (3, 1, torch.bfloat16, 0)):
        net = Net(k, s, False)
        convolutions.with_fast_backward(net)
        used.clear()
        with torch.autocast("cpu", dtype):
            net(torch.randn(1, 8, 9, 9, requires_grad=True)).backward()
        assert len(used) == expected
    used.clear()
    net(torch.randn(1, 8, 9, 9, requires_grad=True)).backward()  # float32
    assert not used


@pytest.mark.parametrize("recomputed", [long(False), long(True)])
def test_a_convolutional_network_trains_with_it_unless_activations_are_recomputed(
    recomputed, make_image_recipe, tmp_path, monkeypatch
):
    timm = pytest.importorskip("timm", reason="timm makes the network")
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "w.pth")
    model = {"name": str(tmp_path / "w.pth"), "architecture": "tf_efficientnet_lite0"}
    used = []
    real = convolutions.weight_gradient
    monkeypatch.setattr(convolutions, "weight_gradient", lambda *a: used.append(1) or real(*a))
    train = {"max_steps": 1, "num_threads": 1, "mixed_precision": "bf16", "gradient_checkpointing": recomputed}
    train["per_device_train_batch_size"] = 2
    run = trained(make_image_recipe(model=model, train=train, data__max_validation_samples=2))
    assert bool(used) != recomputed
    assert all(torch.isfinite(tensor).all() for tensor in run.training.model.state_dict().values())


class NormalizedNet(nn.Module):
    def __init__(self, act, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm, self.act = nn.BatchNorm2d(channels), act

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.fixture
def clamped(monkeypatch):
    """How often ReLU6 was computed here instead of by torch."""
    found, real = [], convolutions._Clamp.apply
    monkeypatch.setattr(convolutions._Clamp, "apply", lambda x: found.append(1) or real(x))
    return found


def one_pass(fast, act, dtype=torch.bfloat16, change=None, training=True):
    """The output, the gradients and the running statistics of one pass."""
    torch.manual_seed(0)
    net, x = NormalizedNet(act).train(training), torch.randn(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        net.norm.weight.mul_(4)  # so that values lie on both sides of 0 and 6
        net.norm.bias.fill_(3)
        if change:
            change(net, x)
    if fast:
        convolutions.with_fast_backward(net)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = net(x)
    (y.float() * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [y.detach(), *(parameter.grad for parameter in net.parameters()), *net.norm.buffers()]


def test_every_number_that_bf16_has_is_clamped_as_torch_does():
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = patterns[~patterns.isnan()]
    assert len(numbers) > 65000 and numbers.isinf().sum() == 2
    assert torch.equal(convolutions._Clamp.apply(numbers.clone()), nn.functional.hardtanh(numbers, 0.0, 6.0))


def test_outputs_gradients_and_statistics_have_the_same_bits(clamped):
    plain = one_pass(False, nn.ReLU6(inplace=True))
    assert not clamped
    fast = one_pass(True, nn.ReLU6(inplace=True))
    assert clamped
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
    plain, fast = (one_pass(on, nn.ReLU6(inplace=True), change=change)[0] for on in (False, True))
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
def test_everything_else_is_left_to_torch(act, dtype, training, clamped):
    plain, fast = (one_pass(on, act, dtype, training=training) for on in (False, True))
    assert not clamped
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


@pytest.mark.parametrize("change", [torch.mul, torch.Tensor.mul_])
def test_what_something_else_came_between_is_left_to_torch(change, clamped):
    class Between(nn.Module):
        def forward(self, x):
            return nn.functional.hardtanh(change(x, float("nan")), 0.0, 6.0, inplace=True)

    assert one_pass(True, Between())[0].isnan().all()
    assert not clamped
