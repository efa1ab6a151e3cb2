"""Progress where there is no terminal: a line every 30 seconds about the innermost of what goes on, and no more."""

from __future__ import annotations

import logging
import threading

import pytest

from sft_hf.core import console
from sft_hf.core.sources import wheels
from sft_hf.engine import loop
from sft_hf.jobs.finetune import finetune


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def go(self, seconds):
        """Let time pass, and the thread that logs look at the clock twice."""
        self.now += seconds
        console._lines.tick()
        console._lines.tick()


@pytest.fixture
def clock(monkeypatch, caplog):
    """A clock for progress lines, without the thread that looks at it; the log speaks."""
    caplog.set_level(logging.INFO, "sft_hf")
    clock = Clock()
    lines = console._Lines(clock)
    monkeypatch.setattr(lines, "_watch", lambda ended: None)
    monkeypatch.setattr(console, "_lines", lines)
    return clock


def test_a_line_every_thirty_seconds(clock, caplog):
    with console.bar("training", total=100, initial=20) as bar:
        for _ in range(10):
            bar.update()
        bar.tell("loss 0.5000")
        clock.go(29.9)
        assert caplog.messages == []
        clock.go(0.1)
        assert caplog.messages == ["training: step 30 of 100 (30%), loss 0.5000, about 3 min 30 s left"]
        clock.go(29.9)
        assert len(caplog.messages) == 1
        clock.go(0.1)
        assert len(caplog.messages) == 2
    clock.go(60)
    assert len(caplog.messages) == 2


def test_the_line_is_about_the_innermost_work(clock, caplog):
    with console.working("still working"), console.bar("training", total=4):
        for item in console.progress(range(8), "evaluating", 8):
            if item == 4:
                clock.go(40)
        clock.go(30)
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "evaluating: 4 of 8 (50%)",
        "training: step 0 of 4 (0%)",
    ]


def test_work_of_unknown_length(clock, caplog):
    with console.working("fetching demo==1.0") as shown:
        shown.tell("1.5 GB")
        clock.go(3700)
    assert caplog.messages == ["fetching demo==1.0: 1.5 GB, 1 h 1 min so far"]


@pytest.mark.parametrize("why", ["quiet", "another rank", "a terminal"])
def test_no_lines(clock, caplog, monkeypatch, why):
    if why == "quiet":
        caplog.set_level(logging.WARNING, "sft_hf")
    elif why == "another rank":
        monkeypatch.setenv("RANK", "1")
    else:
        monkeypatch.setattr(console, "_bars_off", lambda: False)
    with console.working("training"):
        caplog.set_level(logging.INFO, "sft_hf")
        clock.go(60)
    assert caplog.messages == []


def test_a_thread_looks_at_the_clock_until_the_work_ends(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sft_hf")
    said = threading.Event()
    lines = console._Lines(iter(range(0, 10**9, 31)).__next__)  # a clock that is 31 seconds later at every look
    monkeypatch.setattr(console, "_lines", lines)
    monkeypatch.setattr(console.log, "info", lambda *_: said.set())
    with console.working("training"):
        thread = lines._thread
        assert said.wait(60)
    thread.join(60)
    assert not thread.is_alive() and lines._thread is None


def test_a_run_logs_step_loss_speed_and_time_left(clock, caplog, make_recipe, monkeypatch):
    step, seen = loop.train_step, []

    def slow(training, examples, window, state):
        result = step(training, examples, window, state)
        if state.step in (2, 12):
            before = len(caplog.messages)
            clock.go(31)
            seen.append(caplog.messages[before:])
        return result

    monkeypatch.setattr(loop, "train_step", slow)
    finetune(make_recipe(train__logging_steps=10))
    for found, done in zip(seen, (2, 12), strict=True):
        assert len(found) == 1
        assert found[0].startswith(f"training: step {done} of 22 ("), found
        assert "loss " in found[0] and "examples/s" in found[0] and found[0].endswith(" left")


def test_a_download_says_how_much_there_is(tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_bytes(b"x" * 1500)
    assert wheels._bytes_below(tmp_path) >= 1500
