"""The house rules: who may import whom, what is public, what stays out of the way of `--help`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sft_hf

ROOT = Path(sft_hf.__file__).parent
MODULES = {
    ".".join(("sft_hf", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TOP = ("sft_hf.cli", "sft_hf.__main__", "sft_hf.studies", "sft_hf.compression")
TRAINING = tuple(f"sft_hf.{name}" for name in ("run", "loop", "step", "evaluation", "inference", "process", "data"))
CONCRETE = tuple(
    name for name in MODULES if name.startswith(("sft_hf.tasks.", "sft_hf.techniques.")) and not name.endswith(".base")
)
# Leaves of the house: they may import only each other.
GROUND = (
    "sft_hf.core.errors",
    "sft_hf.core.fail_points",
    "sft_hf.core.signals",
    "sft_hf.core.redaction",
    "sft_hf.core.recipe.registry",
    "sft_hf.core.recipe.yaml_files",
    "sft_hf.core.filesystem",
    "sft_hf.core.sources.wheels",
    "sft_hf.core.sources.sources",
    "sft_hf.core.recipe.recipe",
    "sft_hf.core.recipe.sections",
    "sft_hf.tasks.scoring.inputs",
    "sft_hf.tasks.scoring.classification",
    "sft_hf.tasks.scoring.thresholds",
    "sft_hf.tasks.scoring.intervals",
    "sft_hf.tasks.scoring.calibration",
    "sft_hf.core.console",
)


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, inside functions too, but not for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in MODULES and name != "sft_hf"}


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def below(name: str, package: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in package)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_floor_plan(name):
    for imported in IMPORTS[name]:
        if below(name, GROUND):
            assert below(imported, GROUND), f"{name} is ground floor and imports {imported}"
        if name in ("sft_hf.engine.loop", "sft_hf.engine.step", "sft_hf.engine.evaluation"):
            assert imported not in CONCRETE, f"{name} sees only the base of tasks and techniques, not {imported}"
        if name in CONCRETE:
            assert imported not in CONCRETE, f"{name} imports its sibling {imported}"
            assert imported not in (
                "sft_hf.engine.loop",
                "sft_hf.engine.step",
                "sft_hf.jobs.finetune",
                "sft_hf.engine.evaluation",
            ), f"{name} imports {imported}"
        if below(name, ("sft_hf.publishing",)):  # reads records of runs, and knows nothing of how they came about
            assert not below(imported, TRAINING), f"{name} publishes and imports {imported}"
        if imported in ("sft_hf.jobs.finetune", "sft_hf.jobs.inference"):
            assert below(name, (*TOP, "sft_hf.jobs.inference")), f"{name} stands below run and imports it"
        if below(imported, TOP):
            assert below(name, TOP), f"{name} imports {imported}, which stands above it"


def test_the_imports_have_no_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for imported in IMPORTS[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_files_can_be_read_in_one_sitting():
    long = {name: count for name, path in MODULES.items() if (count := len(path.read_text().splitlines())) > 410}
    assert not long


def test_public_names_are_what_is_exported():
    assert sft_hf.__all__ == sorted(sft_hf._HOMES)
    assert all(getattr(sft_hf, name) is not None for name in sft_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sft_hf.nothing


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["recipes"], ["finetune", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from sft_hf.cli import run\n"
        f"status = run({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'accelerate', 'sklearn'} & set(sys.modules)\n"
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
SCRIPTS = {
    path.name: path for path in (ROOT.parent / "scripts").glob("*.py") if path.name != "reliability.py"
}  # plants one


@pytest.mark.parametrize(("name", "path"), [*MODULES.items(), *SCRIPTS.items()])
def test_no_pickle_is_loaded_or_written(name, path):
    for node in ast.walk(ast.parse(path.read_text())):
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
