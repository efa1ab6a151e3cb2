"""The house rules: who may import whom, what is public, what stays out of the way of `--help`."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sft_hf

ROOT = Path(sft_hf.__file__).parent
MODULES = {
    ".".join(("sft_hf", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
SCRIPTS = {  # all but the one that plants a pickle
    path.stem: path for path in sorted((ROOT.parent / "scripts").glob("*.py")) if path.stem != "reliability"
}
RANKS = {
    "cli": 11,
    "serving": 10,
    "studies": 9,
    "jobs": 8,
    "engine": 7,
    "publishing": 6,
    "techniques": 6,
    "tasks": 5,
    "data": 4,
    "models": 4,
    "runtime": 3,
    "core": 2,
}
"""An import from one folder to another goes to a lower rank; folders of one rank do not see each other."""


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of this package that a file imports: inside functions and for type checking, too."""
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in modules and name != "sft_hf"}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {name: imports_of(path, MODULES) for name, path in MODULES.items()}


def folder_of(name: str) -> str:
    return name.split(".")[1]


def test_imports_go_down(imports):
    wrong = [
        f"{name} imports {imported}"
        for name in sorted(set(MODULES) - {"sft_hf", "sft_hf.__main__"})
        for imported in imports[name]
        if folder_of(imported) != folder_of(name) and RANKS[folder_of(imported)] >= RANKS[folder_of(name)]
    ]
    assert not wrong


def test_a_dozen_folders_at_the_top():
    entries = [path.name for path in ROOT.iterdir() if path.name != "__pycache__"]
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert len(entries) <= 15, entries
    assert folders <= set(RANKS), folders - set(RANKS)


def test_techniques_do_not_import_each_other(imports):
    for name in MODULES:
        if name.startswith("sft_hf.techniques.") and name.count(".") == 3:
            others = {other for other in imports[name] if other.startswith("sft_hf.techniques.")}
            assert all(other.split(".")[-1] in ("base", "settings") or "._" in other for other in others), name


def test_settings_import_core_alone(imports):
    """So that a recipe is validated without torch."""
    settings = [name for name in MODULES if name.endswith(".settings") and folder_of(name) in ("tasks", "techniques")]
    assert len(settings) == 7
    for name in settings:
        assert {folder_of(other) for other in imports[name]} == {"core"}, name


TASK_NAMES = {"image_classification", "speech_recognition", "text_classification"}


def test_nothing_outside_tasks_asks_for_a_task_by_name():
    """It asks the task's settings for what it wants to know."""
    asking = [
        name
        for name, path in MODULES.items()
        if name != "sft_hf.core.recipe.registry" and not name.startswith("sft_hf.tasks.")
        if TASK_NAMES & {node.value for node in nodes_of(path) if isinstance(node, ast.Constant)}
    ]
    assert not asking


def test_the_imports_have_no_cycle(imports):
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
    TopologicalSorter({name: imports_of(path, SCRIPTS) for name, path in SCRIPTS.items()}).prepare()


def test_files_can_be_read_in_one_sitting():
    long = {name: count for name, path in MODULES.items() if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_public_names_are_what_is_exported():
    assert sft_hf.__all__ == sorted(sft_hf._HOMES)
    assert all(getattr(sft_hf, name) is not None for name in sft_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sft_hf.nothing


HEAVY = set("torch transformers datasets evaluate accelerate peft sklearn scipy numpy pandas huggingface_hub".split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["recipes"], ["finetune", "--help"], ["schema"]]
    + [["show", name] for name in ("text", "image", "speech", "text_word_embeddings")]
    + [["show", "image", "techniques=[mixup, ema]", "task.augmentation=rand"]],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from sft_hf.cli import run\n"
        f"status = run({arguments!r})\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert status == 0 and not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


PICKLING = {"pickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "pandas"}
FORBIDDEN = (
    "torch.save",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "eval",
    "exec",
    "compile",
    "os.system",
)


def test_no_pickle_is_loaded_or_written():
    places = [(name, node) for name, path in [*MODULES.items(), *SCRIPTS.items()] for node in nodes_of(path)]
    for name, node in places:
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & PICKLING, name
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in PICKLING, name
        if isinstance(node, ast.Call):
            call, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call not in FORBIDDEN, f"{name}: {call}"
            assert not call.endswith((".load_state", ".save_state", ".read_pickle", ".to_pickle")), f"{name}: {call}"
            assert options.get("allow_pickle", "False") == "False", name
            assert options.get("shell", "False") == "False", name
            if call == "torch.load":
                assert options.get("weights_only") == "True", name
            if call == "np.load":
                assert options.get("allow_pickle") == "False", name
            if call == "yaml.load":
                assert "Loader" in options["Loader"] and name == "sft_hf.core.recipe.yaml_files", name
