"""Run by test_callbacks.py under torchrun: the callback of one process asks to stop, or fails, and both hear of it.

usage: distributed_callbacks.py RECIPE OUTPUT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from sft_hf.core.errors import FailedElsewhere
from sft_hf.core.recipe.recipe import load_recipe
from sft_hf.engine.callbacks import Callback
from sft_hf.jobs.finetune import finetune

RANK = os.environ.get("RANK")


class OnOneRank(Callback):
    """Asks to stop after step 2, or fails there, on rank 1 alone."""

    def __init__(self, fail: bool) -> None:
        self.fail = fail

    def on_step_end(self, step: int) -> bool:
        """Return whether it is time."""
        if RANK == "1" and step == 2 and self.fail:
            raise ZeroDivisionError
        return RANK == "1" and step == 2


if __name__ == "__main__":
    recipe = load_recipe(sys.argv[1])
    recipe.output_dir = f"{sys.argv[2]}.stopped"
    stopped = finetune(recipe, callbacks=[OnOneRank(False)]).metrics["train"]
    recipe.output_dir = f"{sys.argv[2]}.failed"
    try:
        finetune(recipe, callbacks=[OnOneRank(True)])
        ended = ""
    except (ZeroDivisionError, FailedElsewhere) as error:
        ended = type(error).__name__
    found = {"steps": stopped["num_steps"], "stopped_by": stopped["stopped_by"], "ended": ended}
    Path(f"{sys.argv[2]}.rank{RANK}").write_text(json.dumps(found))
