"""Kill points for tests: the process dies at a given place.

`SFT_HF_FAIL_POINT=step-000008:5` kills the process (SIGKILL: no handler runs, nothing is flushed) at the fifth point
that is reached while `step-000008` is being written; `step-000008:5:SIGTERM` sends that signal instead. Without the
variable, a point costs one look-up of an environment variable.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "SFT_HF_FAIL_POINT"

_reached: Counter[str] = Counter()


def reach(name: str) -> None:
    """Kill the process if this is the point that the environment variable selects."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _reached[name] += 1
    place, _, number = wanted.partition(":SIG")
    if place == f"{name}:{_reached[name]}":
        # Windows has no SIGKILL; there os.kill ends the process at once for any signal.
        os.kill(os.getpid(), getattr(signal, f"SIG{number or 'KILL'}", signal.SIGTERM))
