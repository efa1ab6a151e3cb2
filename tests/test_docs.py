"""Pages name what exists: commands, options, recipes, keys, files, Python names; and the site builds."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from pages import PAGES, ROOT, blocks, commands, inline_code

from sft_hf.cli import cli
from sft_hf.cli.common import RecipeCommand, recipe_keys
from sft_hf.core.recipe.lookup import list_recipes
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.core.recipe.registry import component_names

OTHER_PROGRAMS = {"docker", "pip", "python3", "."}
SECTIONS = ("model", "data", "train", "optim", "eval", "checkpoint")
KEYS = {key for section in recipe_keys() for key, _ in section}


def check_command(words: list[str]) -> None:
    """Raise if a command, one of its options, or a file or recipe that it names does not exist."""
    program, *arguments = words
    if program == "sft-hf":
        command = cli.commands[arguments[0]]
        context = click.Context(command, info_name=arguments[0])
        values, _, _ = command.make_parser(context).parse_args(list(arguments[1:]))
        name = values.get("recipe_name") or values.get("name")
        if isinstance(command, RecipeCommand) and name in list_recipes():
            overrides = values["overrides"]
            load_recipe(name, overrides if isinstance(overrides, tuple) else ())
    elif program in ("accelerate", "torchrun"):
        assert "scripts/finetune.py" in arguments and arguments[arguments.index("--recipe") + 1] in list_recipes()
    elif program == "python":
        assert arguments[0] == "-m" or (ROOT / arguments[0]).is_file()
    elif "/" in program:
        assert os.access(ROOT / program, os.X_OK)
    elif program == "pytest":
        assert all((ROOT / argument).exists() for argument in arguments if argument.startswith("tests/"))
    else:
        assert program in OTHER_PROGRAMS


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page):
    for words in commands(page):
        try:
            check_command(words)
        except Exception as error:
            pytest.fail(f"{page}: {' '.join(words)}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_inline_code_names_what_exists(page):
    """Commands and their options, recipe keys, and files of the repository."""
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    for code in inline_code(page):
        if code.startswith("sft-hf "):
            _, name, *rest = code.split()
            command = cli.commands.get(name)
            assert command or not name.isalpha() or name.isupper(), (page, code)
            known = {option for parameter in command.params for option in parameter.opts} if command else set()
            assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, (page, code)
        if match := re.match(rf"((?:{'|'.join(SECTIONS)})\.\w+)", code):
            assert match[1] in KEYS or match[1].endswith((".json", ".csv", ".safetensors")), (page, code)
        if re.match(r"(sft_hf|scripts|tests|recipes|docs)/[\w/.]*$", code):
            assert (ROOT / code).exists(), (page, code)
        for group in re.findall(r'pip install .*"\.\[([\w,]+)\]"', code):
            assert set(group.split(",")) <= extras, (page, code)


@pytest.mark.parametrize("page", PAGES)
def test_recipes_are_valid(page, tmp_path):
    for number, text in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_recipe(str(path)).data.name


@pytest.mark.parametrize("page", PAGES)
def test_python_parses_and_imports_what_exists(page):
    for code in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), (page, ast.unparse(node))


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_text_and_lead_to_files(page):
    """Or to a page that only the site has; the paragraph says so, and names a command or folder to look at instead."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert "[](" not in prose
    for paragraph in prose.split("\n\n"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", paragraph):
            if target.startswith("generated/"):
                assert Path(target).stem in generated_pages(), (page, target)
                assert "on the site:" in paragraph and re.search(r"`(sft-hf |recipes/)", paragraph), (page, target)
            elif not re.match(r"https?:", target):
                assert ((ROOT / page).parent / target).exists(), (page, target)


def generated_pages() -> set[str]:
    """The names of the pages that docs/_ext writes when the site is built."""
    extension = ast.parse((ROOT / "docs" / "_ext" / "generated_pages.py").read_text(encoding="utf-8"))
    (pages,) = (
        node.value
        for node in extension.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "PAGES"
    )
    return {key.value for key in pages.keys}


def test_the_command_table_is_complete():
    named = re.findall(r"^\| `sft-hf ([\w-]+)", PAGES["README.md"], flags=re.MULTILINE)
    assert sorted(named) == sorted(cli.commands)


def test_the_technique_table_is_complete():
    named = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| .*$", PAGES["docs/techniques.md"], flags=re.MULTILINE)))
    )
    assert set(component_names("techniques")) <= named


def test_recipes_of_the_results_exist():
    results = PAGES["README.md"].partition("## Results")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)`", results, flags=re.MULTILINE))
    assert len(named) >= 8 and named <= set(list_recipes())


def test_the_technique_shown_is_the_one_in_the_package():
    """Complete except for docstrings; that of the class, which users see, is shown too."""
    (shown,) = (ast.parse(block) for block in blocks("docs/adding.md", "py"))
    folder = ROOT / "sft_hf" / "techniques" / "regularization"
    kinds = (ast.FunctionDef, ast.ClassDef)
    real = [
        node
        for name in ("settings", "label_smoothing")
        for node in ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, kinds) and (name == "label_smoothing" or node.name == "LabelSmoothingSettings")
    ]
    for node in (inner for outer in real for inner in ast.walk(outer)):
        if isinstance(node, kinds) and node.name != "LabelSmoothing" and ast.get_docstring(node):
            node.body = node.body[1:]
    assert [ast.dump(node) for node in shown.body] == [ast.dump(node) for node in real]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.long
def test_the_site_builds_without_warnings(tmp_path):
    """With its generated pages, from a copy of the sources: pages are also written into that folder."""
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import shutil

    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    for name in ("sft_hf", "recipes", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").rglob("*.html")}
    assert {Path(page).stem for page in PAGES if page.startswith("docs/")} <= pages
    techniques = (tmp_path / "site" / "generated" / "techniques.html").read_text()
    assert all(name in techniques for name in component_names("techniques"))
    keys = (tmp_path / "site" / "generated" / "recipe_keys.html").read_text()
    assert all(key in keys for key in KEYS - set(SECTIONS) - {"task"})
