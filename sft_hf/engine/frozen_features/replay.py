"""Record the outputs of a model's frozen lower part, and run the model from these recordings.

In a replay the frozen part is skipped. Its modules return NaN tensors of the right shapes that take no memory, the
model's own code runs between them (masks and positions are correct, since they depend only on shapes), and recorded
tensors are inserted at the cuts. A NaN that got past a cut would reach the loss, so a wrong trace cannot go unnoticed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sft_hf.engine.frozen_features.trace import Cut, Declined, FrozenPart, Run, hooks

MOST_SHAPES = 1000  # limit of the shape cache: batches of audio rarely have the same shape twice

# --- recording ---------------------------------------------------------------------------------------------------


class _Recorded(Exception):
    """Raised when all tensors are recorded, to skip the rest of the forward pass."""


def record(model: nn.Module, part: FrozenPart, run: Run) -> list[Tensor]:
    """Run the frozen part on a batch, and return the tensors at the cuts. Modules after the last cut do not run."""
    found: dict[int, Tensor] = {}

    def take(cut: Cut, leaves: list[Any]) -> None:
        found[cut.tensor] = leaves[cut.leaf].detach()
        if len(found) == part.tensors:
            raise _Recorded

    with _at_cuts(model, part, take), torch.no_grad():
        try:
            run()
        except _Recorded:
            return [found[number] for number in range(part.tensors)]
    raise Declined("the frozen part is not called the same way in every forward pass")


@contextmanager
def _at_cuts(model: nn.Module, part: FrozenPart, action: Callable[[Cut, list[Any]], None]) -> Iterator[None]:
    """Call `action` at every cut with the leaves of the module's arguments, which it may replace."""
    wanted: dict[str, dict[int, list[Cut]]] = {}
    for cut in part.cuts:
        wanted.setdefault(cut.module, {}).setdefault(cut.call, []).append(cut)
    calls: Counter[str] = Counter()

    def before(name: str, _: nn.Module, arguments: Any, options: Any) -> Any:
        call = calls[name]
        calls[name] += 1
        if call not in wanted[name]:
            return None
        leaves, structure = pytree.tree_flatten((arguments, options))
        for cut in wanted[name][call]:
            action(cut, leaves)
        return pytree.tree_unflatten(leaves, structure)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(before, name), with_kwargs=True) for name in wanted
    ]
    with hooks(handles):
        yield


# --- replaying ---------------------------------------------------------------------------------------------------


class Replay:
    """Runs a model without its frozen part."""

    def __init__(self, model: nn.Module, part: FrozenPart) -> None:
        self.model, self.part = model, part
        self._hollow: dict[Any, Any] = {}
        self._first: dict[str, list[Any]] = {}
        self._only_whole: set[str] = set()

    def __call__(self, run: Run, rows: Sequence[Sequence[Tensor]]) -> Any:
        """Return the result of `run`, given the recorded tensors of each row of its batch, without a row dimension."""
        ready: dict[int, Tensor] = {}

        def put(cut: Cut, leaves: list[Any]) -> None:
            if cut.tensor not in ready:
                ready[cut.tensor] = stack_like([row[cut.tensor] for row in rows], leaves[cut.leaf])
            leaves[cut.leaf] = ready[cut.tensor]

        with self._skipping(), _at_cuts(self.model, self.part, put):
            return run()

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        before = []
        for name in self.part.skipped:
            module = self.model.get_submodule(name)
            own = module.__dict__.get("forward")  # set if other code has replaced this instance's forward
            before.append((module, own))
            module.forward = partial(self._stand_in, name, own or type(module).forward.__get__(module))
        try:
            yield
        finally:
            for module, own in before:
                if own is None:
                    del module.forward
                else:
                    module.forward = own

    def _stand_in(self, name: str, forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return NaN tensors in the shapes of `forward`'s outputs, computed once per input shape."""
        leaves, structure = pytree.tree_flatten((arguments, options))
        key = (name, structure, tuple(_signature(leaf) for leaf in leaves))
        if key not in self._hollow:
            if len(self._hollow) >= MOST_SHAPES:
                self._hollow.clear()
            module = self.model.get_submodule(name)
            stand_in, module.forward = module.forward, forward
            try:
                output = self._output_of(name, module, arguments, options)
            finally:
                module.forward = stand_in
            values, form = pytree.tree_flatten(output)
            hollow = [_hollow(leaf, like) for leaf, like in zip(values, self._first[name], strict=True)]
            self._hollow[key] = pytree.tree_unflatten(hollow, form)
        return self._hollow[key]

    def _output_of(self, name: str, module: nn.Module, arguments: Any, options: Any) -> Any:
        """Compute only the shapes if they were right for the first batch; otherwise run the module."""
        if name in self._first and name not in self._only_whole:
            output = _shapes_only(module, arguments, options)
            if output is not None:
                return output
        whole = _run_whole(module, arguments, options)
        if name not in self._first:
            # Dtypes come from a real run: autocast does not support the meta device.
            self._first[name] = [_hollow(leaf, leaf) for leaf in pytree.tree_leaves(whole)]
            output = _shapes_only(module, arguments, options)
            if output is None or _shapes(output) != _shapes(whole):
                self._only_whole.add(name)
        return whole


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, (bool, int, float, str, type(None))) else type(leaf)


class _AnyValue(TorchDispatchMode):
    """Returns 1 when a module reads the value of a tensor that has only a shape ("is nothing masked?")."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        return function(*args, **(kwargs or {}))


def _shapes_only(module: nn.Module, arguments: Any, options: Any) -> Any:
    """Run a module on torch's meta device, which computes only shapes; return None if that fails."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    ghosts = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (state, arguments, options))
    try:
        with torch.no_grad(), _AnyValue():
            return functional_call(module, ghosts[0], ghosts[1], ghosts[2])
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):
        return None


def _run_whole(module: nn.Module, arguments: Any, options: Any) -> Any:
    whole = pytree.tree_map_only(Tensor, Tensor.clone, (arguments, options))  # it may work in place
    with torch.no_grad():
        return module(*whole[0], **whole[1])


def _shapes(output: Any) -> list[Any]:
    return [leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(output)]


def _hollow(leaf: Any, like: Any) -> Any:
    """Return a tensor of the shape of `leaf`, filled with NaN (0 for integers), in the memory of one number."""
    if not isinstance(leaf, Tensor):
        return leaf if isinstance(leaf, (bool, int, float, str)) else None
    value = math.nan if like.is_floating_point() else 0
    return torch.full((), value, dtype=like.dtype, device=like.device).expand(leaf.shape)


def stack_like(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Stack the rows' tensors to the shape of `like`, whose first dimension is the row; pad shorter rows with zeros.

    Raises Declined if they do not fit.
    """
    if len(rows) != like.shape[0] or any(row.ndim + 1 != like.ndim or row.dtype != like.dtype for row in rows):
        raise Declined("the frozen part's output has no row dimension")
    if all(row.shape == like.shape[1:] for row in rows):
        return torch.stack(list(rows)).to(like.device)
    if any(have > room for row in rows for have, room in zip(row.shape, like.shape[1:], strict=True)):
        raise Declined("the frozen part's output does not scale with the batch size")
    filled = torch.zeros(like.shape, dtype=like.dtype)
    for target, row in zip(filled, rows, strict=True):
        target[tuple(slice(size) for size in row.shape)] = row
    return filled.to(like.device)
