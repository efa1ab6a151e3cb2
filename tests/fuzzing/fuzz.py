"""Broken recipes, rows, images and recordings, made from a seed: none may end in a traceback, hang, or fill the memory.

usage: fuzz.py KIND,... FIRST COUNT FOLDER     KIND: recipes, rows, images, audio, tables; FOLDER: made by test_fuzz.py

Prints a JSON line for each case that failed, and for each kind one with the counts, the slowest case and the peak
memory. A case is a function of its kind and number alone: it is repeated with COUNT 1, and its input then lies in
FOLDER/KIND-case. FOLDER/KIND.case holds the number of the case that runs, which a crash leaves behind.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_media import audio, images
from fuzz_recipes import recipes
from fuzz_rows import rows
from fuzz_tables import tables

SECONDS = 10  # of computing: a case that takes longer hangs; waiting, it may take three times as long on a busy machine
MAX_ADDRESSES = 16 * 2**30  # beyond, a case fails before it takes the machine with it


class Hang(BaseException):
    """A case took too long."""


def run_cases(kind: Callable[[random.Random, Path, Path], str], first: int, count: int, folder: Path) -> dict[str, Any]:
    """Run cases `first` to `first + count`, printing what failed; return the counts."""
    from sft_hf.engine.process import peak_resident_bytes

    def too_long(*_: Any) -> None:
        raise Hang

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, too_long)
    outcomes: Counter[str] = Counter()
    slowest, largest = (0.0, first), (0, first)
    for number in range(first, first + count):
        (folder / f"{kind.__name__}.case").write_text(str(number))
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # if it hangs where no signal is heard
        started, before = time.process_time(), peak_resident_bytes()
        outcome, said = run_case(kind, number, folder, number > first)
        seconds, grown = time.process_time() - started, peak_resident_bytes() - before
        if said:
            print(json.dumps({"kind": kind.__name__, "case": number, "traceback": said}), flush=True)
        slowest = max(slowest, (seconds, number)) if number > first else slowest  # the first imports the libraries
        largest = max(largest, (grown, number)) if number > first else largest
        outcomes[outcome] += 1
    faulthandler.cancel_dump_traceback_later()
    return {
        "kind": kind.__name__,
        "outcomes": outcomes,
        "slowest_seconds": round(slowest[0], 2),
        "slowest": slowest[1],
        "peak_bytes": peak_resident_bytes(),
        "largest": largest[1],
    }


def run_case(
    kind: Callable[[random.Random, Path, Path], str], number: int, folder: Path, warm: bool
) -> tuple[str, str]:
    """Return a case's outcome, and what there is to say about a failure; the first has to import the libraries."""
    work = folder / f"{kind.__name__}-case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    generator = random.Random(f"{kind.__name__} {number}")
    seconds = SECONDS if warm else 6 * SECONDS
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(3 * seconds)
    try:
        return kind(generator, work, folder), ""
    except Hang:
        return "hung", f"longer than {seconds} s: {traceback.format_exc()[-2500:]}"
    except Exception:
        return "failed", traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def main() -> None:
    """Run the cases that the command line names."""
    import logging
    import warnings

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    warnings.simplefilter("ignore")
    logging.getLogger("sft_hf").setLevel(logging.CRITICAL)
    kinds = {function.__name__: function for function in (recipes, rows, images, audio, tables)}
    names, first, count, folder = sys.argv[1:]
    for name in names.split(","):
        print(json.dumps(run_cases(kinds[name], int(first), int(count), Path(folder))), flush=True)


if __name__ == "__main__":
    main()
