"""`sft-hf`: each command reads its options and calls one function.

Heavy imports happen inside commands, so that help and usage errors are printed at once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import suppress
from typing import Any

import click

from sft_hf import __version__
from sft_hf.cli.training import check, finetune, recipes, schema, show, techniques, verify_resume
from sft_hf.cli.using import completion, evaluate, predict, push, report
from sft_hf.core import console, redaction
from sft_hf.core.errors import SftError, StorageError, Terminated, UserError, causes_of
from sft_hf.core.extras import how_to_install

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Commands(click.Group):
    """The command group; readers such as head or less may close its output early."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a closed pipe is not an error. (click itself would exit with 1.)"""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None


ENVIRONMENT = """\b
Environment variables:
  SFT_HF_CACHE    cache of packages, tokens and features [$XDG_CACHE_HOME/sft-hf, else ~/.cache/sft-hf]
  HF_HOME         downloads from the Hub [~/.cache/huggingface]
  HF_TOKEN        token for the Hub, instead of `hf auth login`
  HF_HUB_OFFLINE  1: never contact the Hub
  PIP_INDEX_URL   package index of pypi:// sources, with pip's other variables and configuration
  SFT_HF_INSTALL  install command shown in model cards
  NO_COLOR        no colours
"""


@click.group(cls=_Commands, context_settings=CONTEXT, epilog=ENVIRONMENT)
@click.version_option(__version__, prog_name="sft-hf")
@click.option("--quiet", "-q", is_flag=True, help="Show only warnings and results.")
def cli(quiet: bool) -> None:
    """Fine-tune a pretrained model on labeled data, and use it on new data.

    \b
    sft-hf recipes                               list the included recipes
    sft-hf finetune text                         train; the result is written to runs/text
    sft-hf finetune text data='{name: mine.csv}' train on your own file
    sft-hf predict runs/text "some new text"     use it
    sft-hf push runs/text me/my-model            publish it
    """
    console.set_up(quiet)


for command in (
    *(recipes, techniques, finetune, check, verify_resume, show, schema),
    *(evaluate, predict, report, push, completion),
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with one of the documented codes: 0, 1, 2, 3, 74, 130 or 143."""
    redaction.guard_tracebacks()
    console.write_utf8()
    code = run(arguments)
    if code and _has_launcher() and console.is_main_process():
        note = f"the reason is above; the launcher exits with 1, sft-hf finetune would exit with {code}"
        click.echo(f"(output of the launcher may follow: {note})", err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # Python would flush again at exit, fail, and exit with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    gc.freeze()  # otherwise Python collects garbage at exit, which takes a second for a million objects
    sys.exit(code)


def _has_launcher() -> bool:
    """Return whether `accelerate launch` or torchrun started this process: they exit with 1 and print a traceback."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; errors other than bugs are printed as one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    in_json = "--json" in arguments
    try:
        code = cli.main(args=arguments, prog_name="sft-hf", standalone_mode=False)
    except SftError as error:
        return _fail(" ".join(str(error).split()), error.exit_code, in_json, everywhere=not error.on_every_rank)
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the full help text
        click.echo(error.format_message(), err=True)
        return UserError.exit_code
    except click.ClickException as error:
        return _fail(" ".join(error.format_message().split()), UserError.exit_code, in_json)
    except (click.Abort, KeyboardInterrupt) as error:
        ended = next((cause for cause in causes_of(error) if isinstance(cause, Terminated)), None)  # a saved run
        return _fail(str(ended or "interrupted"), ended.exit_code if ended else 130, in_json)
    except ModuleNotFoundError as error:
        if (how := how_to_install(error)) is None:
            return _bug(in_json)
        return _fail(how, UserError.exit_code, in_json)
    except OSError as error:
        message = f"{error.filename or 'file system'}: {error.strerror or error}"
        return _fail(message, StorageError.exit_code, in_json, everywhere=True)
    except Exception:
        return _bug(in_json)
    return code if isinstance(code, int) else 0  # commands return nothing; click returns the code of `Context.exit`


def _bug(in_json: bool) -> int:
    redaction.print_traceback()
    return _fail("this is a bug in sft-hf; please report it with the lines above", 1, in_json, everywhere=True)


def _fail(message: str, code: int, in_json: bool, everywhere: bool = False) -> int:
    message = redaction.redact(message)
    if everywhere or console.is_main_process():
        with suppress(BrokenPipeError):
            click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True, color=console.colours())
    if in_json and console.is_main_process():
        click.echo(json.dumps({"error": message, "exit_code": code}))
    return code
