"""Safe YAML by the rules people expect: `3e-5` is a number, `no` is the word "no", a repeated key is an error.

PyYAML follows YAML 1.1, where `3e-5` is a string and `no` is False. The loader here resolves plain scalars by the
core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3) and constructs nothing but plain data.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sft_hf.errors import RecipeError

MAX_VALUES = 100_000  # of one file, every use of an alias counted
MAX_BYTES = 1 << 20  # a recipe is a page of text; a larger file is something else

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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else, so that any reader agrees."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _pattern, ["" if char == "\0" else char for char in _first])


def _parse(text: str, where: str) -> Any:
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        _check_size(data)
        return data
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        problem = (error.problem or "").replace("\n", " ")
        if "could not determine a constructor" in problem:
            tag = problem.rsplit("tag ", 1)[-1]
            problem = f"the tag {tag} is not plain data; recipes hold only text, numbers, lists and mappings"
        raise RecipeError(f"{where}{_line(mark)}: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}{_line(mark)}: not valid YAML: {problem}") from None


def _check_size(data: Any) -> None:
    """Raise ValueError for aliases that multiply, or lead back to themselves: a page of them can mean gigabytes."""
    stack, count = [data], 0
    while stack:
        value = stack.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"its aliases (*name) stand for more than {MAX_VALUES} values")
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value


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


def parse_value(text: str, where: str) -> Any:
    """Return the value of a `KEY=VALUE` override, by the same rules as in a file. Raises RecipeError."""
    return _parse(text, where)


def write_yaml(data: dict[str, Any]) -> str:
    """Return `data` as YAML text that `read_yaml` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
