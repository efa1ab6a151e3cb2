"""Commands on a recipe: finetune, check, verify-resume, show."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from sft_hf.cli.common import (
    Command,
    RecipeCommand,
    answer,
    for_shell,
    output_dir_option,
    read_recipe,
    recipe_arguments,
    short_path,
)
from sft_hf.core.errors import RecipeError, SftError, UserError
from sft_hf.core.recipe.registry import importing


@click.command(cls=RecipeCommand)
@recipe_arguments
@output_dir_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in the run folder from its newest checkpoint; with --output-dir, NAME is optional.",
)
@click.option(
    "--auto-resume",
    is_flag=True,
    help="Continue the run in the run folder, or start it: one command for requeued jobs.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing run in the run folder.")
@click.option(
    "--other-environment",
    is_flag=True,
    help="When resuming: accept versions, threads or a device other than the checkpoint's.",
)
def finetune(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    output_dir: str | None,
    resume: bool,
    auto_resume: bool,
    overwrite: bool,
    other_environment: bool,
) -> None:
    """Train a model by recipe NAME; KEY=VALUE changes its settings.

    \b
    sft-hf finetune text
    sft-hf finetune text optim.learning_rate=3e-5 train.num_train_epochs=2
    sft-hf finetune my_recipe.yaml --output-dir runs/mine
    sft-hf finetune --resume --output-dir runs/mine
    """
    recipe = read_recipe(name, recipe_name, overrides, output_dir, resume=resume or auto_resume)
    with importing():
        from sft_hf.jobs.finetune import finetune as run_finetune

    mode: Any = "auto" if auto_resume else resume
    result = run_finetune(recipe, resume=mode, overwrite=overwrite, other_environment=other_environment)
    folder = short_path(result.output_dir)
    typed = for_shell(folder)
    push = "" if result.hub_url else f"    or sft-hf push {typed} REPO_ID"
    answer(
        {"output_dir": str(result.output_dir), "hub_url": result.hub_url, **result.metrics},
        _summary(result, folder),
        f"sft-hf predict {typed} INPUT...    or open {folder}/report.html{push}",
    )


def _summary(result: Any, folder: str) -> list[str]:
    metrics = result.metrics
    role = "test" if "test" in metrics else "validation"
    primary = metrics["primary_metric"]
    lines = []
    if scores := metrics.get(role):
        low, high = scores[f"{primary}_ci95"]
        sure = f"95 % interval {low:.4f} to {high:.4f}" if low < high else "too few different rows for an interval"
        lines.append(f"{role} {primary} {scores[primary]:.4f} ({sure}, {scores['num_examples']} rows)")
    for baseline in metrics.get("baselines") or []:
        own = baseline.get("model", {}).get(primary)
        sampled = own is not None and baseline["num_examples"] != metrics[role]["num_examples"]
        there = f"; the model on the same rows: {own:.4f}" if sampled else ""
        found = baseline.get("difference", {}).get("verdict")
        said = f" (the model is {found})" if found else ""
        lines.append(f"compared with {baseline['metrics'][primary]:.4f} by {baseline['description']}{there}{said}")
    train = metrics["train"]
    speed = f"{train['examples_per_second']:.1f} examples/s"
    seconds, total = train["runtime_seconds"], train["total_seconds"]
    # For a resumed run, the steps include earlier commands, but the total seconds do not.
    whole = f"{total:.0f} s in all" if total >= seconds else f"{total:.0f} s since the last resume"
    lines.append(f"{train['num_steps']} steps in {seconds:.0f} s ({speed}), {whole}")
    lines.append(f"model: {folder}/model    metrics: {folder}/metrics.json    report: {folder}/report.html")
    if result.hub_url:
        lines.append(f"Hub: {result.hub_url}")
    return lines


@click.command(cls=RecipeCommand)
@recipe_arguments
@output_dir_option
@click.option("--strict", is_flag=True, help="Fail on warnings, such as test rows that are also in train.")
@click.option("--push-to", metavar="REPO_ID", help="Also check write access to this Hub repository.")
def check(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    output_dir: str | None,
    strict: bool,
    push_to: str | None,
) -> None:
    """Find problems before training.

    Reads every row, looks for rows shared by two splits and for labels with few rows, takes one step on the longest
    rows (memory, time), saves a checkpoint and reads it back, and checks the free disk space. Leaves no files behind.

    \b
    sft-hf check text data='{name: mine.csv, text_column: review, label_column: stars}'
    """
    recipe = read_recipe(name, recipe_name, overrides, output_dir)
    logging.getLogger("sft_hf").setLevel(logging.ERROR)  # the report contains all findings
    with importing():
        from sft_hf.studies.check import check as run_check

    report = run_check(recipe, push_to=push_to)
    lines = [
        *(f"{click.style('ok', fg='green')}       {line}" for line in report.passed),
        *(f"{click.style('warning', fg='yellow')}  {line}" for line in report.warnings),
        *(f"{click.style('FAILED', fg='red')}   {problem}" for problem in report.problems),
    ]
    found = {"passed": report.passed, "warnings": report.warnings, "problems": [str(e) for e in report.problems]}
    failed = bool(report.problems) or (strict and bool(report.warnings))
    answer(found, lines, None if failed else f"sft-hf finetune {' '.join(filter(None, (recipe_name, name)))} ...")
    if report.problems:
        raise report.problems[0]
    if failed:
        raise UserError(f"{len(report.warnings)} warnings, and --strict: {report.warnings[0]}")


@click.command("verify-resume", cls=RecipeCommand)
@recipe_arguments
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="Number of kills.")
@click.option(
    "--steps", type=click.IntRange(min=2), default=20, show_default=True, help="Length of the runs, in optimizer steps."
)
@click.option("--whole", is_flag=True, help="Run the recipe to its end instead of --steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for choosing the kill times.")
def verify_resume(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    kills: int,
    steps: int,
    whole: bool,
    seed: int,
) -> None:
    """Check that recipe NAME, killed and resumed, gives the same bits as an uninterrupted run.

    Trains it twice in a temporary folder next to the run folder, once uninterrupted and once with SIGKILLs at random
    times, and compares weights, predictions, metrics and log. Exit code 1 if anything differs.

    \b
    sft-hf verify-resume text
    sft-hf verify-resume my_recipe.yaml --kills 10 --whole
    """
    recipe = read_recipe(name, recipe_name, overrides, None)
    from sft_hf.studies.verify_resume import verify_resume as verify

    verdict = verify(recipe, kills=kills, steps=None if whole else steps, seed=seed)
    lines = [f"{'DIFFERENT' if file in verdict.differing else 'identical':10} {file}" for file in verdict.compared]
    if verdict.kills and verdict.exact:
        lines.append(f"killed {verdict.kills} times in {verdict.steps} steps; identical to the bit")
    found = {key: getattr(verdict, key) for key in ("exact", "compared", "differing", "kills", "steps")}
    proved = bool(verdict.kills) and verdict.exact
    answer(found, lines, _finetune(recipe_name, name, overrides) if proved else None)
    if not verdict.kills:
        raise SftError("the run ended before it could be killed, so nothing was checked; give more --steps")
    if not verdict.exact:
        raise SftError(f"resuming is not exact: {', '.join(verdict.differing)} after {verdict.kills} kills")


@click.command(cls=Command)
def recipes() -> None:
    """List the included recipes."""
    from sft_hf.core.recipe.lookup import list_recipes

    found: list[dict[str, Any]] = [
        {"name": name, "title": _title(path), "hub": _hub_ids(path), "path": str(path)}
        for name, path in list_recipes().items()
    ]
    width = max((len(recipe["name"]) for recipe in found), default=0)
    lines = []
    for recipe in found:
        lines.append(f"{recipe['name']:{width}}  {recipe['title']}")
        lines += [f"{'':{width}}  {key}: {name}" for key, name in recipe["hub"].items()]
    answer(found, lines, "sft-hf show NAME    or    sft-hf check NAME    or    sft-hf finetune NAME")


def _hub_ids(path: Path) -> dict[str, str]:
    """Return the Hub ids of a recipe's model and data, {section: id}; empty for a file that cannot be read."""
    from sft_hf.core.recipe.yaml_files import read_yaml
    from sft_hf.core.sources.sources import could_be_hub_id

    try:
        recipe = read_yaml(path)
    except RecipeError:
        return {}
    sections = {key: recipe.get(key) for key in ("model", "data")}
    names = {key: section.get("name") for key, section in sections.items() if isinstance(section, dict)}
    return {key: name for key, name in names.items() if isinstance(name, str) and could_be_hub_id(name)}


def _title(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith("yaml-language-server")), "")


@click.command(cls=RecipeCommand)
@recipe_arguments
@output_dir_option
def show(name: str | None, recipe_name: str | None, overrides: tuple[str, ...], output_dir: str | None) -> None:
    """Print the resolved recipe: defaults filled in, KEY=VALUE applied."""
    recipe = read_recipe(name, recipe_name, overrides, output_dir)
    answer(recipe.model_dump(mode="json"), recipe.to_yaml().rstrip("\n"), _finetune(recipe_name, name, overrides))


def _finetune(recipe_name: str | None, name: str | None, overrides: tuple[str, ...]) -> str:
    """Return the finetune command for the same arguments; with --recipe, `name` is an override."""
    return "sft-hf finetune " + " ".join(map(for_shell, filter(None, (recipe_name, name, *overrides))))


@click.command(cls=Command)
@click.argument("name", required=False)
def techniques(name: str | None) -> None:
    """List the techniques that modify training, or describe NAME: settings, tasks, paper.

    \b
    sft-hf techniques
    sft-hf techniques mixup
    sft-hf finetune image techniques='[{name: mixup, alpha: 0.2}]'
    """
    from sft_hf.cli.technique_pages import explain, list_techniques

    if name is not None:
        found = explain(name)
        answer(found.to_json(), found.lines(), f"sft-hf finetune RECIPE techniques='[{{name: {name}}}]'")
        return
    pages = list_techniques()
    width = max(len(page.name) for page in pages)
    lines = [f"{page.name:{width}}  {page.tasks_line():18}  {page.summary}" for page in pages]
    answer([page.to_json() for page in pages], lines, "sft-hf techniques NAME")


@click.command(cls=Command)
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sft_hf.core.recipe.recipe import json_schema

    found = json_schema()
    answer(found, json.dumps(found, indent=2))
