"""Commands on a finished run: evaluate, predict, report, push."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import Any

import click

from sft_hf.cli.common import (
    PRECISIONS,
    Command,
    answer,
    complete_run,
    for_shell,
    run_argument,
    short_path,
    suggest,
    trust_option,
    wants_json,
)
from sft_hf.core.recipe.registry import importing

log = logging.getLogger("sft_hf")

SOME_FAILED = 3  # exit code of `predict` if some inputs could not be answered


@click.command(cls=Command)
@run_argument
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option(
    "--mixed-precision",
    type=PRECISIONS,
    default="no",
    show_default=True,
    help="no: float32, as in the run. auto: the fastest precision of the hardware.",
)
@trust_option
def evaluate(run: str, split: str, mixed_precision: str, trust_remote_code: bool) -> None:
    """Score the model in run folder RUN again; prints the metrics as JSON."""
    with importing():
        from sft_hf.jobs.inference import evaluate_run

    metrics = evaluate_run(run, split, mixed_precision=mixed_precision, trust_remote_code=trust_remote_code)
    answer(metrics, json.dumps(metrics, indent=2), f"sft-hf report {for_shell(run)}")


@click.command(cls=Command)
@run_argument
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path())
@click.option("--output", metavar="FILE", help="Write to this file; for subtitles of several recordings, a folder.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "json", "csv", "txt", "srt", "vtt"]),
    help="jsonl: one JSON object per line; json: one array; csv: a table; txt: one prediction per line; srt, vtt: "
    "subtitles. "
    "[default: by the extension of FILE, else jsonl; with --json, json]",
)
@click.option(
    "--text", "literal", is_flag=True, help="Treat every INPUT as a text, even if a file of that name exists."
)
@click.option("--probabilities", is_flag=True, help="Classifiers: add the probability of every class.")
@click.option("--timestamps", is_flag=True, help="Speech: add times, as `segments`; implied by subtitles.")
@click.option(
    "--window",
    type=click.Choice(["full", "auto", "buckets"]),
    help="Whisper: full: the whole 30 s, like a pipeline. auto: the training window for recordings that fit into it; "
    "several times faster, and words may differ. buckets: the length of each recording in whole seconds; only for "
    "models trained with task.window: buckets. [default: the recipe's, else full]",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows per forward pass. [default: the recipe's]")
@click.option(
    "--mixed-precision",
    type=PRECISIONS,
    help="no: float32, as in a pipeline. auto: the fastest precision of the hardware, several times faster; "
    "close calls between classes are recomputed in float32. [default: texts auto, images and speech no]",
)
@trust_option
def predict(
    run: str,
    inputs: tuple[str, ...],
    output: str | None,
    kind: str | None,
    literal: bool,
    probabilities: bool,
    timestamps: bool,
    window: str | None,
    batch_size: int | None,
    mixed_precision: str | None,
    trust_remote_code: bool,
) -> None:
    """Apply the model in run folder RUN to new data; one JSON line per input.

    INPUT is, for a text model, a text, a file (.txt: one text a line; tables: the recipe's columns), or - for lines of
    standard input; for images and speech, a file, a folder, a pattern, or a table with a column of paths. An INPUT that
    exists is read as a file, unless --text is given. Files are read in chunks and may be larger than memory;
    recordings may be hours long.

    An answer starts with the input's id (its number, or the value of the table's `id` column), path and row, counted
    from 0. An input that cannot be answered is reported on standard error and has an `error` in the output, and the
    exit code is 3. If no input can be answered, the exit code is 2, and nothing is written.

    \b
    sft-hf predict runs/text "oil prices rose again"
    sft-hf predict runs/text new.csv --output predictions.csv --probabilities
    sft-hf predict runs/image photos/ --output labels.txt
    sft-hf predict runs/speech meeting.mp3 --output meeting.srt
    """
    with importing():
        from sft_hf.jobs.inference import answers
    from sft_hf.jobs.prediction_files import SUBTITLES, Tally, format_of, refuse_to_replace, write_predictions

    refuse_to_replace(inputs, output)
    kind = format_of(output, kind or ("json" if wants_json() and output is None else None))
    settings: dict[str, Any] = {"predict_window": window} if window else {}
    if timestamps or kind in SUBTITLES:
        settings["timestamps"] = True
    given = [sys.stdin if value == "-" and not literal else value for value in inputs]
    rows = answers(
        run,
        given,
        literal=literal,
        probabilities=probabilities,
        batch_size=batch_size,
        mixed_precision=mixed_precision,
        trust_remote_code=trust_remote_code,
        **settings,
    )
    tally = Tally(in_output=kind not in ("txt", *SUBTITLES))
    write_predictions(tally.counted(rows), output, kind)
    if output is not None and wants_json():
        answer({"output": output, "answered": tally.answered, "failed": tally.failed}, "")
    elif output is not None:
        log.info("predictions: %s", output)
    if tally.failed:
        log.warning("%s", tally.summary())
        click.get_current_context().exit(SOME_FAILED)
    typed = for_shell(run)
    if output is None:
        suggest(f"the same on a file: sft-hf predict {typed} FILE --output predictions.jsonl")
    else:
        suggest(f"sft-hf report {typed}    or    sft-hf push {typed} REPO_ID")


@click.command(cls=Command)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_run)
@click.option("--output", metavar="FILE", help="[default: RUN/report.html; for several runs, comparison.html]")
@trust_option
def report(runs: tuple[str, ...], output: str | None, trust_remote_code: bool) -> None:
    """Write a self-contained HTML report on run folder RUN, or a comparison of several runs.

    \b
    sft-hf report runs/text
    sft-hf report runs/text runs/text_word_embeddings --output comparison.html
    """
    from sft_hf.jobs.results import write_comparison, write_report

    if len(runs) == 1:
        path = write_report(runs[0], output, trust_remote_code=trust_remote_code)
    else:
        path = write_comparison(runs, output or "comparison.html", trust_remote_code=trust_remote_code)
    answer(
        {"output": str(path)},
        f"report: {short_path(path)}",
        f"open it in a browser{'' if len(runs) > 1 else f'    or    sft-hf push {for_shell(runs[0])} REPO_ID'}",
    )


@click.command(cls=Command)
@run_argument
@click.argument("repo_id", metavar="REPO_ID")
@click.option("--public", is_flag=True, help="Create the repository as public (default: private).")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, created if missing. [default: main]")
@click.option("--tag", help="Tag the commit.")
@click.option("--message", help="Commit message.")
def push(run: str, repo_id: str, public: bool, revision: str | None, tag: str | None, message: str | None) -> None:
    """Publish the model of run folder RUN on the Hugging Face Hub, as REPO_ID (owner/name), in one commit.

    The model, its adapter if it has one, the card, the recipe and the metrics are uploaded; checkpoints, predictions
    and the report are not. An interrupted push leaves the repository unchanged; the same command continues it. The
    token comes from HF_TOKEN or `hf auth login`.

    \b
    sft-hf push runs/text me/reuters-topics
    sft-hf push runs/text me/reuters-topics --public --tag v1
    """
    from sft_hf.publishing.hub.push import push as push_run

    result = push_run(run, repo_id, private=not public, revision=revision, tag=tag, message=message)
    seen = "private" if result.private else "public"
    done = "pushed to" if result.changed else "nothing new for"
    answer(
        asdict(result),
        f"{done} {result.url} ({seen}, {len(result.files)} files, commit {result.commit[:12]})",
        f'in Python: from transformers import pipeline; pipeline(model="{result.repo_id}")',
    )


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: commands, recipes, keys and run folders.

    \b
    sft-hf completion bash >> ~/.bashrc
    sft-hf completion zsh  >> ~/.zshrc
    sft-hf completion fish > ~/.config/fish/completions/sft-hf.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(click.get_current_context().find_root().command, {}, "sft-hf", "_SFT_HF_COMPLETE").source()
    answer({"shell": shell, "script": script}, script)
