"""The code is valid for Python 3.10, the oldest version that pyproject.toml declares, whichever runs the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("sft_hf", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
OLDEST = (3, 10)

NEWER = {
    *("ExceptionGroup", "BaseExceptionGroup", "tomllib"),
    *("asyncio.TaskGroup", "asyncio.timeout", "asyncio.Runner", "asyncio.Barrier"),
    *("calendar.Month", "collections.abc.Buffer", "contextlib.chdir", "copy.replace", "datetime.UTC"),
    *("enum.StrEnum", "enum.ReprEnum", "enum.verify", "enum.member", "enum.nonmember", "enum.EnumCheck"),
    *("hashlib.file_digest", "inspect.getmembers_static", "itertools.batched", "logging.getLevelNamesMapping"),
    *("logging.getHandlerByName", "math.cbrt", "math.exp2", "math.sumprod", "operator.call", "os.process_cpu_count"),
    *("random.binomialvariate", "sys.exception", "warnings.deprecated", "os.listdrives", "os.path.isjunction"),
    *(
        f"typing.{name}"
        for name in "LiteralString Never NotRequired Required Self TypeVarTuple Unpack assert_never assert_type "
        "clear_overloads dataclass_transform get_overloads override reveal_type".split()
    ),
}
"""Names of the standard library that came with Python 3.11 to 3.13."""

NEWER_METHODS = {"add_note", "walk", "full_match", "is_junction", "from_uri"}
"""Of exceptions and of pathlib.Path; `walk` but for that of `os` and `ast`."""

NEWER_OPTIONS = {"onexc", "delete_on_close", "include_hidden", "walk_up", "case_sensitive"}

NOT_SUBSCRIPTABLE = {"logging.StreamHandler", "logging.LoggerAdapter", "StreamHandler", "LoggerAdapter"}
"""Generic for type checkers; at run time only from 3.11 on."""


LAST_NAMES = {name.rpartition(".")[2] for name in NEWER | NOT_SUBSCRIPTABLE}


def last_name(node: ast.Attribute | ast.Subscript) -> str | None:
    """`c` of a.b.c and of a.b.c[0]: to look at it is faster than to write the whole expression."""
    inner = node.value if isinstance(node, ast.Subscript) else node
    return inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", None)


ANY = re.compile(rf"\b(?:{'|'.join(sorted(LAST_NAMES | NEWER_METHODS | NEWER_OPTIONS))})\b")
"""What a file has to contain for `newer` to find something in it."""


def newer(tree: ast.AST) -> list[str]:
    """What a module uses that Python 3.10 has not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in NEWER]
        elif isinstance(node, ast.ImportFrom):
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in NEWER]
            found += [node.module] if node.module in NEWER else []
        elif isinstance(node, ast.Name) and node.id in NEWER:
            found.append(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and last_name(node) in LAST_NAMES:
            name = ast.unparse(node.value if isinstance(node, ast.Subscript) else node)
            found += [ast.unparse(node)] if name in (NOT_SUBSCRIPTABLE if name != ast.unparse(node) else NEWER) else []
        elif isinstance(node, ast.Call):
            found += [option.arg for option in node.keywords if option.arg in NEWER_OPTIONS]
            if isinstance(node.func, ast.Attribute) and node.func.attr in NEWER_METHODS:
                own = ast.unparse(node.func.value)
                found += [node.func.attr] if own not in ("os", "ast") else []
    return found


def test_every_file_is_valid_for_the_oldest_python():
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    trees = {path: ast.parse(text, str(path), feature_version=OLDEST) for path, text in texts.items()}
    assert len(trees) > 300
    candidates = {path: tree for path, tree in trees.items() if ANY.search(texts[path])}  # the others take no walk
    assert {str(path): names for path, tree in candidates.items() if (names := newer(tree))} == {}


def test_what_is_newer_is_found():
    code = (
        "import tomllib\nfrom typing import Self\nimport datetime, logging, shutil\nnow = datetime.UTC\n"
        "class Handler(logging.StreamHandler[str]): pass\nshutil.rmtree('x', onexc=None)\nPath('x').walk()\n"
        "raise ExceptionGroup('x', [])\n"
    )
    assert set(newer(ast.parse(code))) == {
        *("tomllib", "typing.Self", "datetime.UTC", "logging.StreamHandler[str]", "onexc", "walk", "ExceptionGroup")
    }
    with pytest.raises(SyntaxError):
        ast.parse("try: pass\nexcept* ValueError: pass", feature_version=OLDEST)


def test_the_oldest_python_is_declared_once_and_the_same():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.findall(r'(?:requires-python|target-version|python_version) = "\D*3\.?(\d+)"', text)
    assert declared == [str(OLDEST[1])] * 3
