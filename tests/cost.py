"""What each test costs in processor time, children included: wall time says little on a busy machine.

usage: PYTHONPATH=tests python -m pytest -p cost --cost FILE TESTS

FILE gets a line "<seconds> <test>" for each. What a fixture costs counts for the test that asked for it first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--cost", metavar="FILE", help="append the processor time of every test to FILE")


def _seconds() -> float:
    """Processor seconds of this process, of its children that live, and of all that have ended."""
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # ended in between: its parent counts it from now on
    return total


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: Any) -> Iterator[None]:
    file = item.config.getoption("--cost")
    if not file:
        yield
        return
    before = _seconds()
    yield
    with Path(file).open("a", encoding="utf-8") as out:  # one short line: whole, also from several workers
        out.write(f"{_seconds() - before:.2f} {item.nodeid}\n")
