"""`sft-hf`: each command reads its options and calls one function.

Nothing heavy is imported before a command runs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from sft_hf import __version__, console, redaction
from sft_hf.errors import RecipeError, SftError, StorageError, UserError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _TeachingCommand(click.Command):
    """A command on a recipe: its help ends with every key that a recipe may set."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the keys, section by section."""
        from sft_hf.recipe import Recipe, Section

        formatter.write("\nRecipe keys (KEY=VALUE; VALUE is YAML), with their defaults:\n")
        for section, field in Recipe.model_fields.items():
            kind: Any = field.annotation
            fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
            if section == "task" or not fields:
                fields, prefix = {section: field}, ""
            else:
                prefix = f"{section}."
            rows = [(f"{prefix}{name}", f"{entry.description} [{_default(entry)}]") for name, entry in fields.items()]
            with formatter.indentation():
                formatter.write_dl(rows)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else json.dumps(value) if not hasattr(value, "model_fields") else "see its keys"


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="sft-hf")
@click.option("--quiet", "-q", is_flag=True, help="Say only warnings and results.")
def cli(quiet: bool) -> None:
    """Fine-tune a pretrained checkpoint on labelled data, and use it on new data.

    \b
    sft-hf recipes                               what is ready to run
    sft-hf finetune text                         train; the result stands in runs/text
    sft-hf finetune text data.name=mine.csv      the same on your own file
    sft-hf predict runs/text "some new text"     use it
    """
    console.set_up(quiet)


def recipe_arguments(command: Any) -> Any:
    """NAME [KEY=VALUE ...], or --recipe NAME, as `accelerate launch scripts/finetune.py` has it."""
    command = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)(command)
    command = click.argument("name", metavar="[NAME]", required=False)(command)
    return click.option("--recipe", "recipe_name", metavar="NAME", help="The recipe, if not given as first word.")(
        command
    )


def read_recipe(name: str | None, recipe_name: str | None, overrides: tuple[str, ...], output_dir: str | None) -> Any:
    """Return the recipe that the arguments describe. Raises RecipeError."""
    from sft_hf.recipe import list_recipes, load_recipe

    if recipe_name:
        overrides = ((name,) if name else ()) + overrides
    elif not name:
        raise RecipeError(f"give the name of a recipe ({', '.join(list_recipes())}) or a path to a YAML file")
    if output_dir:
        overrides = (*overrides, f"output_dir={json.dumps(output_dir)}")
    return load_recipe(recipe_name or name or "", overrides)


@cli.command(cls=_TeachingCommand)
@recipe_arguments
@click.option("--output-dir", metavar="DIR", help="The run folder. [default: runs/NAME]")
@click.option("--resume", is_flag=True, help="Continue the run in the run folder from its newest checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace a run that stands in the run folder.")
@click.option(
    "--other-environment",
    is_flag=True,
    help="With --resume: continue although versions, threads or device are not those of the checkpoint.",
)
def finetune(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    output_dir: str | None,
    resume: bool,
    overwrite: bool,
    other_environment: bool,
) -> None:
    """Train a model as recipe NAME says, with any KEY=VALUE changed.

    \b
    sft-hf finetune text
    sft-hf finetune text optim.learning_rate=3e-5 train.num_train_epochs=2
    sft-hf finetune my_recipe.yaml --output-dir runs/mine
    """
    recipe = read_recipe(name, recipe_name, overrides, output_dir)
    from sft_hf.run import finetune as run_finetune

    result = run_finetune(recipe, resume=resume, overwrite=overwrite, other_environment=other_environment)
    if console.is_main_process():
        click.echo(_summary(result))


def _summary(result: Any) -> str:
    metrics = result.metrics
    role = "test" if "test" in metrics else "validation"
    folder = os.path.relpath(result.output_dir)
    folder = str(result.output_dir) if folder.startswith("..") else folder
    lines = []
    if scores := metrics.get(role):
        primary = metrics["primary_metric"]
        low, high = scores[f"{primary}_ci95"]
        lines.append(
            f"{role} {primary} {scores[primary]:.4f} (95 % interval {low:.4f} to {high:.4f}, "
            f"{scores['num_examples']} rows)"
        )
    train = metrics["train"]
    speed = f"{train['examples_per_second']:.1f} examples/s"
    seconds, total = train["runtime_seconds"], train["total_seconds"]
    lines.append(f"{train['num_steps']} steps in {seconds:.0f} s ({speed}), {total:.0f} s in all")
    lines.append(f"model: {folder}/model    metrics: {folder}/metrics.json")
    lines.append(f"next:  sft-hf predict {folder} INPUT...    or    sft-hf evaluate {folder}")
    return "\n".join(lines)


@cli.command()
@recipe_arguments
@click.option("--output-dir", metavar="DIR", help="The run folder. [default: runs/NAME]")
@click.option("--strict", is_flag=True, help="Fail on warnings, such as test rows that are in train too.")
@click.option("--push-to", metavar="REPO_ID", help="Check also that this Hub repository can be written to.")
def check(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    output_dir: str | None,
    strict: bool,
    push_to: str | None,
) -> None:
    """Find out everything that can be found out before training: minutes now instead of a failure hours later.

    Reads every row, looks for rows that two splits share and for labels with few rows, takes one step on the longest
    rows (memory, time), saves a checkpoint and reads it back, and counts the free space. Nothing is left behind.

    \b
    sft-hf check text data.name=mine.csv
    """
    recipe = read_recipe(name, recipe_name, overrides, output_dir)
    logging.getLogger("sft_hf").setLevel(logging.ERROR)  # the report says it all, and once
    from sft_hf.experiments.check import check as run_check

    report = run_check(recipe, push_to=push_to)
    for line in report.passed:
        click.echo(f"ok       {line}")
    for line in report.warnings:
        click.echo(f"warning  {line}")
    for problem in report.problems:
        click.echo(f"FAILED   {problem}")
    if report.problems:
        raise report.problems[0]
    if strict and report.warnings:
        raise UserError(f"{len(report.warnings)} warnings, and --strict: {report.warnings[0]}")


@cli.command("verify-resume")
@recipe_arguments
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="How often the run is killed.")
@click.option(
    "--steps", type=click.IntRange(min=2), default=20, show_default=True, help="Length of the runs, in updates."
)
@click.option("--whole", is_flag=True, help="Run the recipe as long as it says, instead of --steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the moments at which the run is killed.")
def verify_resume(
    name: str | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    kills: int,
    steps: int,
    whole: bool,
    seed: int,
) -> None:
    """Prove that recipe NAME, killed and resumed, gives the bits of a run that was not.

    Trains it twice in a temporary folder beside the run folder: in one go, and under SIGKILLs at random moments, and
    compares weights, predictions, metrics and log. Exit code 1 if anything differs.

    \b
    sft-hf verify-resume text
    sft-hf verify-resume my_recipe.yaml --kills 10 --whole
    """
    recipe = read_recipe(name, recipe_name, overrides, None)
    from sft_hf.experiments.verify_resume import verify_resume as verify

    verdict = verify(recipe, kills=kills, steps=None if whole else steps, seed=seed)
    for file in verdict.compared:
        click.echo(f"{'DIFFERENT' if file in verdict.differing else 'identical':10} {file}")
    if not verdict.kills:
        raise SftError("the run ended before it could be killed, so nothing is proved; give more --steps")
    if not verdict.exact:
        raise SftError(f"resuming is not exact: {', '.join(verdict.differing)} after {verdict.kills} kills")
    click.echo(f"killed {verdict.kills} times in {verdict.steps} steps, and the same to the bit")


@cli.command()
def recipes() -> None:
    """List the recipes that a name finds."""
    from sft_hf.recipe import list_recipes

    for name, path in list_recipes().items():
        click.echo(f"{name:28} {_title(path)}")


def _title(path: Path) -> str:
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line for line in comments if not line.startswith("yaml-language-server")), "")


@cli.command(cls=_TeachingCommand)
@recipe_arguments
@click.option("--output-dir", metavar="DIR", help="The run folder. [default: runs/NAME]")
def show(name: str | None, recipe_name: str | None, overrides: tuple[str, ...], output_dir: str | None) -> None:
    """Print a recipe as it would run: defaults filled in, KEY=VALUE applied."""
    click.echo(read_recipe(name, recipe_name, overrides, output_dir).to_yaml(), nl=False)


@cli.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sft_hf.recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command()
@click.argument("run")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--mixed-precision", type=click.Choice(["no", "bf16", "fp16", "auto"]), default="no", show_default=True)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that came with the run's checkpoint.")
def evaluate(run: str, split: str, mixed_precision: str, trust_remote_code: bool) -> None:
    """Score the model in run folder RUN again; the metrics go to standard output as JSON."""
    from sft_hf.inference import evaluate_run

    metrics = evaluate_run(run, split, mixed_precision=mixed_precision, trust_remote_code=trust_remote_code)
    if console.is_main_process():
        click.echo(json.dumps(metrics, indent=2))


@cli.command()
@click.argument("run")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--output", metavar="FILE", help="Write to this file; for subtitles of several recordings, a folder.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "json", "txt", "srt", "vtt"]),
    help="jsonl: one JSON object a line; json: an array of them; txt: one prediction a line; srt, vtt: subtitles. "
    "[default: the ending of FILE, else jsonl]",
)
@click.option("--timestamps", is_flag=True, help="Speech: say when what was said, as `segments`; subtitles imply it.")
@click.option(
    "--window",
    type=click.Choice(["full", "auto"]),
    help="Whisper: hear a recording in the whole 30 s, like a pipeline, or (auto) in the window of training where it "
    "fits: several times faster, and a word may come out differently. [default: the recipe's, else full]",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows per forward pass. [default: the recipe's]")
@click.option("--mixed-precision", type=click.Choice(["no", "bf16", "fp16", "auto"]), default="no", show_default=True)
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that came with the run's checkpoint.")
def predict(
    run: str,
    inputs: tuple[str, ...],
    output: str | None,
    kind: str | None,
    timestamps: bool,
    window: str | None,
    batch_size: int | None,
    mixed_precision: str,
    trust_remote_code: bool,
) -> None:
    """Apply the model in run folder RUN to new data; one JSON line per input.

    INPUT is, for a text model, a text, a file (.txt: one text a line; CSV, TSV, JSONL, Parquet: the recipe's columns),
    or - for lines of standard input; for images and speech, a file, a folder of them, or a table with a column of
    paths. Files are read in pieces and may be larger than memory; recordings may last hours.

    \b
    sft-hf predict runs/text "oil prices rose again"
    sft-hf predict runs/text new.csv --output predictions.jsonl
    sft-hf predict runs/image photos/ --output labels.txt
    sft-hf predict runs/speech meeting.mp3 --output meeting.srt
    """
    from sft_hf.inference import predict_inputs
    from sft_hf.prediction_files import SUBTITLES, format_of, write_predictions

    kind = format_of(output, kind)
    settings: dict[str, Any] = {"predict_window": window} if window else {}
    if timestamps or kind in SUBTITLES:
        settings["timestamps"] = True
    options: dict[str, Any] = {"mixed_precision": mixed_precision, "trust_remote_code": trust_remote_code}
    rows = predict_inputs(run, inputs, batch_size=batch_size, **options, **settings)
    write_predictions(rows, output, kind)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with the code of the contract: 0, 1, 2, 74 or 143."""
    redaction.guard_tracebacks()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; every failure that is not a bug is one line on standard error."""
    try:
        cli.main(args=arguments, prog_name="sft-hf", standalone_mode=False)
    except SftError as error:
        return _fail(" ".join(str(error).split()), error.exit_code, everywhere=not error.on_every_rank)
    except click.ClickException as error:
        return _fail(" ".join(error.format_message().split()), UserError.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'file system'}: {error.strerror or error}", StorageError.exit_code, True)
    except Exception:
        redaction.print_traceback()
        return _fail("this is a bug in sft-hf; please report it with the lines above", 1, True)
    return 0


def _fail(message: str, code: int, everywhere: bool = False) -> int:
    if everywhere or console.is_main_process():
        click.echo(f"error: {redaction.redact(message)}", err=True)
    return code
