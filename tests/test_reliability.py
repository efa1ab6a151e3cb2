"""A run that cannot be lost: real processes, real SIGKILLs, at random and at every point of a save; real damage."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiers import long

from sft_hf.core.fail_points import VARIABLE

SAVES = ("step-000004", "step-000008", "step-000012", "step-000016", "step-000020", "step-000022")
POINTS = 24  # more than a save has


class Runs:
    """Starts, kills and resumes runs of one recipe on one or two ranks."""

    def __init__(self, commands, fingerprint, recipe_file, folder, ranks):
        self.commands, self.fingerprint, self.recipe, self.folder, self.ranks = (
            commands,
            fingerprint,
            recipe_file,
            folder,
            ranks,
        )
        self.count = 0
        batch = f"train.per_device_train_batch_size={8 // ranks}"
        self.arguments = ("finetune", str(recipe_file), batch)
        started = time.monotonic()
        self.reference = self.finish(self.new_folder())
        self.seconds = time.monotonic() - started

    def new_folder(self) -> Path:
        self.count += 1
        return self.folder / f"run-{self.count}"

    def start(self, folder, resume=False, **rank_0):
        more = ("--resume",) if resume else ()
        return self.commands.start_ranks(self.ranks, *self.arguments, "--output-dir", str(folder), *more, rank_0=rank_0)

    def kill(self, running):
        for rank in running:
            rank.kill()
        return [rank.wait() for rank in running]

    def finish(self, folder):
        """Resume what is there, or start, to the end; return what has to be the same."""
        running = self.start(folder, resume=(folder / "recipe.yaml").is_file())
        codes = [rank.wait() for rank in running]
        assert codes == [0] * self.ranks, running[0].said() + running[-1].said()
        return self.fingerprint(folder)

    def check_resumed(self, folder):
        found = self.finish(folder)
        assert found == self.reference
        shutil.rmtree(folder)

    def killed_at(self, name, point):
        """Kill rank 0 at a point of a save (the others with it); whether the run lived to reach it."""
        folder = self.new_folder()
        running = self.start(folder, **{VARIABLE: f"{name}:{point}"})
        died = running[0].wait() == -signal.SIGKILL
        self.kill(running[1:])
        self.check_resumed(folder)
        return died

    def killed_after(self, seconds):
        folder = self.new_folder()
        running = self.start(folder)
        time.sleep(seconds)
        codes = self.kill(running)
        self.check_resumed(folder)
        return -signal.SIGKILL in codes


@pytest.fixture(scope="module", params=[1, long(2)], ids=["one-rank", "two-ranks"])
def runs(request, commands, commands_module, recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return Runs(commands, commands_module.fingerprint, recipe_file, folder, request.param)


@pytest.mark.long
def test_killed_at_random_a_run_resumes_to_the_same_hashes(runs):
    generator = random.Random(runs.ranks)
    killed = sum(runs.killed_after(generator.uniform(0, runs.seconds)) for _ in range(4))
    assert killed >= 2


@pytest.mark.parametrize("kills", [1, long(4)])
def test_killed_inside_a_save_a_run_resumes_to_the_same_hashes(runs, kills):
    generator = random.Random(runs.ranks)
    for _ in range(kills):
        assert runs.killed_at(generator.choice(SAVES[1:]), generator.randint(1, 15))


@pytest.mark.long
@pytest.mark.parametrize("runs", [1], indirect=True, ids=["one-rank"])
def test_killed_at_the_start_amid_and_at_the_end_of_one_save(runs):
    assert all(runs.killed_at("step-000012", point) for point in (1, 7, 14))


@pytest.mark.long
@pytest.mark.parametrize("runs", [1], indirect=True, ids=["one-rank"])  # rank 0 alone saves
def test_killed_at_every_point_of_one_save(runs):
    points = [runs.killed_at("step-000012", point) for point in range(1, POINTS + 1)]
    reached = points.index(False)
    assert 14 <= reached < POINTS, points
    assert not any(points[reached:])


@pytest.mark.long
def test_two_hundred_kills(runs, capsys):
    """100 on one rank and 100 on two, half of them inside a save; with the other writes of a run besides."""
    generator = random.Random(200 + runs.ranks)
    counts = {"at random": 0, "inside a save": 0, "elsewhere": 0}
    while counts["at random"] < 50:
        counts["at random"] += runs.killed_after(generator.uniform(0, runs.seconds))
    while counts["inside a save"] < 50:
        counts["inside a save"] += runs.killed_at(generator.choice(SAVES), generator.randint(1, 18))
    if runs.ranks == 1:
        for name in (
            "best-000005",
            "best-000010",
            "model",
            "outputs",
            "metrics.json",
            "predictions.jsonl",
            "recipe.yaml",
        ):
            for point in range(1, POINTS):
                if not runs.killed_at(name, point):
                    break
                counts["elsewhere"] += 1
    with capsys.disabled():
        print(f"\n{runs.ranks} rank(s), SIGKILLs, all resumed to the same hashes: {counts}")


@pytest.mark.parametrize("runs", [1], indirect=True, ids=["one-rank"])
@pytest.mark.parametrize("points", [[13], long(range(9, POINTS, 6)), long(range(9, POINTS))], ids=["one", "few", "all"])
def test_killed_after_the_last_save_a_run_still_removes_the_one_before(runs, points):
    """The new one is in its place after point 12."""
    reached = [runs.killed_at("step-000022", point) for point in points]
    assert any(reached)
