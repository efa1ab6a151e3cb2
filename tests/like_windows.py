"""A program of its own that trains, stops and resumes as on Windows, as far as Linux can be made to look like it.

    python like_windows.py RECIPE FOLDER PYPI_NAME SHA256

Modules that only Unix has cannot be imported, names of `os` and `signal` that only Unix has are gone, folders cannot be
opened, and a file that this process has open or mapped can be neither moved nor deleted. What it finds out is printed
as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

UNIX_MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog")
UNIX_NAMES = {
    os: ("fork", "forkpty", "getuid", "geteuid", "getgid", "killpg", "setsid", "sched_getaffinity", "fchmod"),
    signal: ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGALRM", "setitimer", "pthread_kill"),
}


def hide_unix() -> None:
    """Hide what only Unix has. The packages that we use know Windows, and are imported before."""
    for name in ("accelerate", "datasets", "filelock", "psutil", "sklearn.linear_model", "transformers"):
        importlib.import_module(name)
    importlib.import_module("transformers.models.bert.modeling_bert")
    for name in UNIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in UNIX_NAMES.items():
        for name in names:
            delattr(module, name)


def refuse_what_windows_refuses() -> None:
    """Raise PermissionError for a folder that is opened, and for a file in use that is moved or deleted."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "shutil.rmtree") and isinstance(arguments[0], (str, Path)):
            if arguments[-1] in (-1, None):  # else below a folder that has passed already
                refuse_use(os.path.realpath(arguments[0]))
        elif event == "open" and arguments[1] is None and os.path.isdir(arguments[0]):  # os.open
            raise PermissionError(13, "a folder is opened", str(arguments[0]))

    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    sys.addaudithook(hook)


def refuse_use(path: str) -> None:
    """Raise PermissionError where this process has a file at or below `path` open or mapped."""
    used = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            used.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # that of the list itself
            continue
    with open("/proc/self/maps") as maps:
        used |= {line.split(maxsplit=5)[5].strip() for line in maps if "/" in line}
    for file in used:
        if ".filelock-" in path:  # what that package does, it does on Unix alone
            continue
        if file == path or file.startswith(path + os.sep):
            raise PermissionError(13, "in use", file)


def import_everything() -> int:
    """Import every module of the package; return how many there are."""
    import sft_hf

    root = Path(sft_hf.__file__).parent
    names = [".".join(("sft_hf", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")]
    for name in names:
        importlib.import_module(name.removesuffix(".__init__"))
    return len(names)


def train_stop_and_resume(recipe: Any, folder: Path) -> dict[str, Any]:
    """Train in one go; then again, asked to stop in the fourth step, and resumed."""
    from sft_hf.core.errors import Terminated
    from sft_hf.engine import loop
    from sft_hf.jobs.finetune import finetune

    whole = finetune(recipe.model_copy(update={"output_dir": str(folder / "whole")}))
    parts = recipe.model_copy(update={"output_dir": str(folder / "parts")})
    step, stopped = loop.train_step, False

    def interrupted(training: Any, examples: Any, window: Any, state: Any) -> Any:
        if state.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(training, examples, window, state)

    loop.train_step = interrupted
    try:
        finetune(parts)
    except Terminated:
        stopped = True
    loop.train_step = step
    resumed = finetune(parts, resume=True)
    weights = [(Path(run.output_dir) / "model" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    again = finetune(parts, overwrite=True)
    return {
        "stopped": stopped,
        "same_weights": weights[0] == weights[1],
        "peak_memory_bytes": again.metrics["train"]["peak_memory_bytes"],
        "line_ends": b"\r" in (folder / "parts" / "log.jsonl").read_bytes(),
    }


def main(recipe: str, folder: str, wheel: str, sha256: str) -> None:
    """Do all of it."""
    hide_unix()
    from sft_hf.core import filesystem

    filesystem.WINDOWS = True
    modules = import_everything()
    from sft_hf.core.recipe.recipe import load_recipe
    from sft_hf.core.sources.sources import resolve
    from sft_hf.engine import process

    refuse_what_windows_refuses()
    source = resolve(wheel, sha256=sha256)
    process.open = no_proc  # type: ignore[attr-defined]
    found = train_stop_and_resume(load_recipe(recipe), Path(folder))
    print(json.dumps({"modules": modules, "wheel": str(source.path), **found}))


def no_proc(path: str, **_: Any) -> Any:
    """What `open` says on Windows of a file of /proc."""
    raise FileNotFoundError(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
