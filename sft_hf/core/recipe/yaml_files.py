"""Safe YAML with the rules that people expect: `3e-5` is a number, `no` is the word "no", a repeated key is an error.

PyYAML follows YAML 1.1, where `3e-5` is a string and `no` is False. The loader here resolves plain scalars by the
core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3) and constructs nothing but plain data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sft_hf.core.errors import RecipeError

MAX_VALUES = 100_000  # per file; every use of an alias counts
MAX_BYTES = 1 << 20  # a recipe is a page of text; a larger file is something else
MAX_DEPTH = 100  # lists and mappings inside each other; beyond 250, pydantic and PyYAML give up

_SWALLOWED = re.compile(r"[ \t]*(#[^\s#][^\r\n\0]*)")  # `key: #1 String`; an intended comment has a blank after its #
_INTEGER = re.compile(r"^[-+]?[0-9]+$")
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
        ),
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {  # type: ignore[misc]
        # No dates, sets, bytes, ...: a recipe would not survive being saved.
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("str", "seq", "map")
    }

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count += 1
        if self._count > MAX_VALUES:  # before the rest is read, which is slow
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"it holds more than {MAX_VALUES} values", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _plain_int(text: str) -> int:
    value = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if abs(value) >= 2**63:
        raise ValueError("has more than 64 bits; write large numbers as 1e30")
    return value


def _plain_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_VALUES: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "int": _plain_int,
    "float": _plain_float,
    "null": lambda text: None,
}


def _construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Construct a plain value; raises if the text does not match an explicit tag (`!!int abc`)."""
    kind = node.tag.rpartition(":")[2]
    text = str(loader.construct_scalar(node))
    mark = node.start_mark
    if not text and mark.buffer is not None and (lost := _SWALLOWED.match(mark.buffer, mark.pointer)):
        problem = f"{lost[1][:40]!r} is a comment in YAML, so that no value is left; put it in quotes, or write null"
        raise yaml.constructor.ConstructorError(None, None, problem, mark)
    pattern = next(pattern for tag, pattern, _ in _CORE_SCHEMA if tag == node.tag)
    try:
        if pattern.match(text) or (kind == "float" and _INTEGER.match(text)):
            return _VALUES[kind](text)
        problem = f"is not a valid {kind}"
    except ValueError as error:  # Python converts at most 4300 digits
        problem = "is too long for a number" if len(text) > 4300 else str(error)
    raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} {problem}", node.start_mark)


for _kind_of_value in _VALUES:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind_of_value}", _construct)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as another type, so that all readers agree."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _pattern, ["" if char == "\0" else char for char in _first])


class _TextLoader(_Loader):
    """Reads every plain value as text: 001 and 1e5 as they are written."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def _parse(text: str, where: str, texts: bool = False) -> Any:
    try:
        data = yaml.load(text, Loader=_TextLoader if texts else _Loader)  # noqa: S506 - a SafeLoader
        check_plain(data)
        return data
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        problem = (error.problem or "").replace("\n", " ")
        if "could not determine a constructor" in problem:
            tag = problem.rsplit("tag ", 1)[-1]
            problem = f"the tag {tag[:60]} is not plain data; recipes hold only text, numbers, lists and mappings"
        raise RecipeError(f"{where}{_line(mark)}: {problem[:300]}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        if isinstance(error, RecursionError):
            problem = f"lists and mappings are nested more than {MAX_DEPTH} deep"
        raise RecipeError(f"{where}{_line(mark)}: not valid YAML: {problem[:300]}") from None


def check_plain(data: Any) -> None:
    """Raise ValueError for data that cannot be written back as YAML, or that would expand without limit.

    This covers recursive or multiplying aliases, too many values or levels, and invalid text.
    """
    stack: list[tuple[Any, int]] = [(data, 0)]
    count = letters = 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > MAX_VALUES or letters > MAX_BYTES:
            held = f"{MAX_VALUES} values" if count > MAX_VALUES else f"{MAX_BYTES} letters"
            raise ValueError(f"its aliases (*name) stand for more than {held}")
        if depth > MAX_DEPTH:
            raise ValueError(f"lists and mappings are nested more than {MAX_DEPTH} deep")
        if isinstance(value, str):
            letters += len(value)
            _check_text(value)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError("a whole number has more than 64 bits; write large numbers as 1e30")
        elif isinstance(value, dict):
            stack += ((part, depth + 1) for pair in value.items() for part in pair)
        elif isinstance(value, list):
            stack += ((part, depth + 1) for part in value)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError(f"the text {text[:40]!r} holds a NUL character")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"the text {text[:40]!r} is not valid Unicode: half a surrogate pair")


def _line(mark: Any) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises RecipeError, naming file and line, for a file that cannot be read, is larger than `MAX_BYTES`, is not valid
    YAML, holds tags or repeated keys, or is not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes; a recipe is a short text file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections (task, model, data, ...), not {_kind(data)}")
    return data


def _kind(data: Any) -> str:
    return "empty" if data is None else f"a {type(data).__name__}"


def parse_value(text: str, where: str, *, texts: bool = False) -> Any:
    """Return the value of a `KEY=VALUE` override, by the same rules as in a file.

    With `texts`, plain values inside lists and mappings stay text: 001 is not a number. Raises RecipeError, also for a
    value that YAML would truncate at a `#`.
    """
    try:
        value = _parse(text, where, texts)
    except RecipeError as error:
        raise RecipeError(f"{error}{'; put text that contains # in quotes' * ('#' in text)}") from None
    # If the `#` begins a comment, replacing it with a letter makes the value longer.
    if "#" in text and json.dumps(value).replace("#", "x") != json.dumps(_without_hash(text, where, texts)):
        raise RecipeError(f"{where}: '#' begins a comment in YAML; put the value in quotes: \"'{text.strip()}'\"")
    return value


def _without_hash(text: str, where: str, texts: bool) -> Any:
    try:
        return _parse(text.replace("#", "x"), where, texts)
    except RecipeError:
        return None


def write_yaml(data: dict[str, Any]) -> str:
    """Return `data` as YAML text that `read_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as {dotted key: value}."""
    if not isinstance(data, Mapping) or not data:
        return {prefix: data}
    result: dict[str, Any] = {}
    for key, value in data.items():
        result.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return result


def find_beside(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe file's content with `./` names that only exist in its own folder made absolute."""
    result = dict(data)
    for key in ("model", "data"):
        section = data.get(key)
        if not isinstance(section, dict):
            continue
        name = section.get("name")
        if not isinstance(name, str) or not name.startswith("./"):
            continue
        if not os.path.exists(name) and os.path.exists(folder / name):
            result[key] = {**section, "name": os.path.realpath(folder / name)}
    return result
