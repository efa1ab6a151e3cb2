"""Find the frozen lower part of a model, and where its outputs are used (see `replay`).

This code is independent of the architecture. A forward pass is traced, and autograd shows the dependencies:

1. With the model as it is, a tensor requires a gradient if it depends on something trainable or random (dropout).
   The largest modules whose parameters are all frozen, and whose inputs never depend on anything of that kind, are the
   *frozen part*: their outputs are a function of the row alone.
2. With every parameter frozen and the outputs of the frozen part marked as requiring a gradient, the inputs of the
   modules above that require one come from the frozen part. These tensors are the *cuts*: a pooled vector before a
   linear head, hidden states before the first trained layer, the encoder's output before a decoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

Run = Callable[[], Any]
"""One forward pass of the model."""

Label = tuple[str, int]
"""A module's name, and the index of its call in a forward pass."""


class Declined(Exception):
    """Raised when the frozen part cannot be cached; the message gives the reason."""


@dataclass(frozen=True)
class Cut:
    """Where a recorded tensor is used: the module, its call, and the leaf of its arguments."""

    module: str
    call: int
    leaf: int
    tensor: int
    """Index of the recorded tensor; several modules may use the same one."""


@dataclass(frozen=True)
class FrozenPart:
    """The modules that need not run, and where their outputs are used."""

    modules: tuple[str, ...]
    """The frozen modules below the cuts."""
    skipped: tuple[str, ...]
    """These, and the modules without parameters that only process their outputs."""
    containers: tuple[str, ...]
    """The modules that contain them, whose own parameters may be used."""
    cuts: tuple[Cut, ...]
    tensors: int


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    """Remove hooks on exit."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- finding it --------------------------------------------------------------------------------------------------


def find_frozen_part(model: nn.Module, run: Run) -> FrozenPart:
    """Return the frozen lower part of a model, which must be in training mode. Raises Declined if there is none."""
    dependent = _dependencies(model, run)
    closed: set[str] = set()
    while True:
        roles = _Roles(model, dependent, closed)
        if not roles.modules:
            raise Declined("nothing below the trained parts is frozen")
        if not any(_computes(model.get_submodule(name)) for name in roles.modules):
            raise Declined("only embeddings are frozen, and looking them up again costs nothing")
        found = _find_cuts(model, run, roles, dependent)
        if found.mixed is None:
            break
        # A skip connection around something trained: treat the module that contains both as one piece.
        closed.add(_surrounding(found.mixed, roles.containers, dependent))
    if not found.cuts:
        raise Declined("nothing that is trained uses the frozen part")
    opened: set[str] = set()
    for name in dict.fromkeys(cut.module for cut in found.cuts):  # such as a head that gets all tokens, uses the first
        inner_roles = _Roles(model, dependent, closed, opened | {name})
        inner = _find_cuts(model, run, inner_roles, dependent)
        if inner.mixed is None and 0 < inner.size < found.size:
            found, roles = inner, inner_roles
            opened.add(name)
    skipped = (*roles.modules, *found.skippable)
    return FrozenPart(tuple(roles.modules), skipped, tuple(roles.containers), tuple(found.cuts), found.tensors)


def is_random(module: nn.Module) -> bool:
    """Return whether a module itself draws random numbers in its current mode."""
    if not module.training:
        return False
    if isinstance(module, _DropoutNd):
        return module.p > 0
    name = type(module).__name__.lower()
    return not list(module.children()) and ("drop" in name or "noise" in name) and not _is_off(module)


def _is_off(module: nn.Module) -> bool:
    rates = [getattr(module, name, None) for name in ("p", "drop_prob", "drop_rate", "prob")]
    return all(rate in (None, 0) for rate in rates) and any(rate == 0 for rate in rates)


def _dependencies(model: nn.Module, run: Run) -> dict[Label, list[bool]]:
    """Trace a forward pass: for each call, return which inputs depend on something trainable or random."""
    found: dict[Label, list[bool]] = {}
    calls: Counter[str] = Counter()

    def before(name: str, _: nn.Module, arguments: Any, options: Any) -> None:
        leaves = pytree.tree_leaves((arguments, options))
        found[name, calls[name]] = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        calls[name] += 1

    handles: list[Any] = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        if is_random(module):
            handles.append(module.register_forward_hook(partial(_changed, _marked)))
    with hooks(handles), torch.enable_grad():
        run()
    return found


def _marked(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_().clone()  # not a leaf: activations may work in place
    return value


class _Roles:
    """The roles of a model's modules: the frozen part, its containers, its consumers, and those without parameters."""

    def __init__(
        self,
        model: nn.Module,
        dependent: dict[Label, list[bool]],
        closed: set[str],
        opened: AbstractSet[str] = frozenset(),
    ) -> None:
        """`closed`: modules not to descend into; `opened`: modules to descend into though nothing in them is frozen."""
        self.called = {name for name, _ in dependent}
        waiting = {name for (name, _), flags in dependent.items() if any(flags)}
        self._frozen = {
            name for name, module in model.named_modules() if name in self.called - waiting and _is_frozen(module)
        }
        self._closed, self._opened = closed, opened
        self._seen: set[int] = set()
        self.modules: list[str] = []
        self.containers: list[str] = []
        self.consumers: list[str] = []
        self.neutral: list[str] = []
        self._visit("", model)

    def _visit(self, name: str, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        around = any(inner.startswith(f"{name}." if name else "") for inner in self._frozen - {name})
        if name in self._frozen:
            self.modules.append(name)
        elif around and name not in self._closed:
            self.containers.append(name)
            self._visit_children(name, module)
        elif name not in self.called or name in self._opened:
            self._visit_children(name, module)
        elif any(True for _ in module.parameters()) or any(map(is_random, module.modules())):
            self.consumers.append(name)
        else:
            self.neutral.append(name)

    def _visit_children(self, name: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            self._visit(f"{name}.{child_name}" if name else child_name, child)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    if not parameters or any(parameter.requires_grad for parameter in parameters):
        return False
    return not any(map(is_random, module.modules()))


def _computes(module: nn.Module) -> bool:
    """Return whether a module does more than look up vectors and normalize them."""
    layers = [part for part in module.modules() if list(part.parameters(recurse=False))]
    return any(
        not isinstance(layer, nn.Embedding) and any(p.ndim > 1 for p in layer.parameters(recurse=False))
        for layer in layers
    )


def _surrounding(name: str, containers: Sequence[str], dependent: dict[Label, list[bool]]) -> str:
    """Return the innermost called module that contains `name`. Raises Declined if that is the model itself."""
    while name:
        name = name.rpartition(".")[0]
        if name in containers and (name, 0) in dependent:
            break
    if not name:
        raise Declined("frozen and trained modules are interleaved")
    return name


class _Found(NamedTuple):
    cuts: list[Cut]
    tensors: int
    size: int  # elements of all tensors
    skippable: list[str]
    mixed: str | None  # a module with an input that depends on both frozen and trained parts


def _find_cuts(model: nn.Module, run: Run, roles: _Roles, dependent: dict[Label, list[bool]]) -> _Found:
    cuts: list[Cut] = []
    tensors: dict[int, tuple[int, Tensor]] = {}  # kept alive, so that no two have the same id
    calls: Counter[str] = Counter()
    keeps: set[str] = set()
    mixed: list[str] = []

    def at_consumer(name: str, _: nn.Module, arguments: Any, options: Any) -> None:
        call = calls[name]
        calls[name] += 1
        for index, leaf in enumerate(pytree.tree_leaves((arguments, options))):
            if not isinstance(leaf, Tensor) or not leaf.requires_grad:
                continue
            if dependent[name, call][index]:
                mixed.append(name)
            number = tensors.setdefault(id(leaf), (len(tensors), leaf))[0]
            cuts.append(Cut(name, call, index, number))

    def at_neutral(name: str, _: nn.Module, arguments: Any, options: Any) -> None:
        given = [leaf for leaf in pytree.tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
        flags = dependent[name, calls[name]]
        calls[name] += 1
        if not given or any(flags) or not all(leaf.requires_grad for leaf in given):
            keeps.add(name)

    def hook(name: str, function: Any) -> Any:
        return model.get_submodule(name).register_forward_pre_hook(partial(function, name), with_kwargs=True)

    handles = [hook(name, at_consumer) for name in roles.consumers] + [hook(name, at_neutral) for name in roles.neutral]
    for names, change in ((roles.modules, _marked), (roles.consumers, _unmarked)):
        for name in names:
            after = partial(_changed, change)
            handles.append(model.get_submodule(name).register_forward_hook(after))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with hooks(handles), torch.enable_grad():
            run()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    skippable = [name for name in roles.neutral if calls[name] and name not in keeps]
    size = sum(tensor.numel() for _, tensor in tensors.values())
    return _Found(cuts, len(tensors), size, skippable, mixed[0] if mixed else None)


def _changed(change: Callable[[Any], Any], _: nn.Module, __: Any, output: Any) -> Any:
    return pytree.tree_map(change, output)


def _unmarked(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
