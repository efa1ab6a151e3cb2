"""Shared parts of the commands: --quiet and --json, output, and recipe arguments."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from sft_hf.core import console
from sft_hf.core.errors import RecipeError


def _set_quiet(_: click.Context, __: click.Parameter, quiet: bool) -> None:
    if quiet:
        console.set_up(quiet=True)


def _set_json(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.find_root().meta["json"] = wanted


class Command(click.Command):
    """A command with --quiet and --json."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += [
            click.Option(
                ["--quiet", "-q"],
                is_flag=True,
                expose_value=False,
                callback=_set_quiet,
                help="Show only warnings and results.",
            ),
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_set_json,
                help="Print one JSON value on standard output, also for errors.",
            ),
        ]


TASK_KEYS = (
    "task.KEY",
    "A setting of the task, such as task.max_length (text) or task.language (speech). "
    "List them with: sft-hf show NAME (for example: sft-hf show speech). Descriptions: sft-hf schema.",
)


class RecipeCommand(Command):
    """A command on a recipe, whose help ends with all recipe keys."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the keys, section by section."""
        formatter.write("\nRecipe keys (KEY=VALUE; VALUE is YAML), with their defaults:\n")
        for section in recipe_keys():
            rows = [(key, f"{entry.description} [{_default(entry)}]") for key, entry in section]
            if section[0][0] == "task":
                rows.append(TASK_KEYS)
            with formatter.indentation():
                formatter.write_dl(rows)


def recipe_keys() -> list[list[tuple[str, Any]]]:
    """Return all dotted recipe keys with their fields, in lists by section."""
    from sft_hf.core.recipe.recipe import Recipe, Section

    found = []
    for name, field in Recipe.model_fields.items():
        kind: Any = field.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
        if name == "task" or not fields:
            found.append([(name, field)])
        else:
            found.append([(f"{name}.{key}", entry) for key, entry in fields.items()])
    return found


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else json.dumps(value) if not hasattr(value, "model_fields") else "see its keys"


# --- answers -----------------------------------------------------------------------------------------------------


def wants_json() -> bool:
    """Return whether --json was given."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().meta.get("json"))


def answer(data: Any, lines: Sequence[str] | str, next_step: str | None = None) -> None:
    """Print a command's result: `lines`, or with --json `data`; on standard error, the suggested next command.

    Only rank 0 prints.
    """
    if not console.is_main_process():
        return
    if wants_json():
        click.echo(json.dumps(data, indent=2))
        return
    click.echo(lines if isinstance(lines, str) else "\n".join(lines), color=console.colours())
    if next_step is not None:
        suggest(next_step)


def suggest(next_step: str) -> None:
    """Suggest the next command on standard error; nothing with --quiet or --json."""
    if console.is_main_process() and not console.is_quiet() and not wants_json():
        click.echo(f"next:  {next_step}", err=True)


def for_shell(word: str) -> str:
    """Return a word quoted for the shell if necessary."""
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)


def short_path(path: str | Path) -> str:
    """Return a path relative to the working folder if it is inside it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive on Windows
        return str(path)
    return str(path) if relative.startswith("..") else relative


# --- arguments ---------------------------------------------------------------------------------------------------


def complete_recipe(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of recipes, and files."""
    from sft_hf.core.recipe.lookup import list_recipes

    names = [CompletionItem(name) for name in list_recipes() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_key(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete dotted recipe keys, with their descriptions."""
    keys = [pair for section in recipe_keys() for pair in section]
    return [
        CompletionItem(f"{key}=", help=entry.description)
        for key, entry in keys
        if key.startswith(incomplete) and "=" not in incomplete
    ]


def complete_run(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete run folders in the working folder and in runs/."""
    found = [
        str(path.parent)
        for pattern in ("*/recipe.yaml", "runs/*/recipe.yaml")
        for path in sorted(Path().glob(pattern))
        if str(path.parent).startswith(incomplete)
    ]
    return [CompletionItem(name) for name in found] or [CompletionItem(incomplete, type="dir")]


def recipe_arguments(command: Any) -> Any:
    """Add the arguments NAME [KEY=VALUE ...], or --recipe NAME, as used with `accelerate launch`."""
    command = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1, shell_complete=complete_key)(command)
    command = click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_recipe)(command)
    return click.option(
        "--recipe",
        "recipe_name",
        metavar="NAME",
        help="The recipe, if not given as the first argument.",
        shell_complete=complete_recipe,
    )(command)


def run_argument(command: Any) -> Any:
    """Add the argument RUN, a run folder."""
    return click.argument("run", shell_complete=complete_run)(command)


output_dir_option = click.option("--output-dir", metavar="DIR", help="The run folder. [default: runs/NAME]")
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that came with the run's pretrained model."
)
PRECISIONS = click.Choice(["no", "bf16", "fp16", "auto"])


def read_recipe(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    output_dir: str | None,
    *,
    resume: bool = False,
) -> Any:
    """Return the recipe given by the arguments. Raises RecipeError.

    `resume`: without a name, use the recipe of the run in `output_dir`.
    """
    from sft_hf.core.recipe.lookup import list_recipes
    from sft_hf.core.recipe.recipe import load_recipe

    if recipe_name or (name and resume and output_dir and "=" in name and not os.path.exists(name)):
        overrides, name = ((name,) if name else ()) + overrides, None
    name = recipe_name or name
    if not name and resume and output_dir:
        name = str(Path(output_dir).expanduser() / "recipe.yaml")
        if not os.path.isfile(name):
            raise RecipeError(f"{output_dir}: no run was started here (no recipe.yaml); also give the recipe's name")
    elif not name:
        raise RecipeError(f"give the name of a recipe ({', '.join(list_recipes())}) or a path to a YAML file")
    if output_dir:
        overrides = (*overrides, f"output_dir={json.dumps(output_dir)}")
    return load_recipe(name, overrides)
