"""The benchmark's arithmetic: each peer's share of the peak is in the precision that it uses, and never above one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from sft_hf.core.recipe.yaml_files import write_yaml

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmark

    return benchmark


def run(speed, precision, **more):
    return {
        "examples_per_second": speed,
        "seconds": 1.0,
        "peak_memory_bytes": 1e9,
        "precision": precision,
        "metrics": {},
        "curve": [],
        **more,
    }


def test_shares_of_peak(benchmark):
    results = {
        "ours": [run(8.0, "bf16")],
        "step": [run(10.0, "bf16", flops_per_example=1e9)],
        "plain": [run(6.0, "no")],
    }
    setup = {"peaks": {"no": 5e9, "bf16": 2e10}, "description": "a model", "device": "cpu"}
    found = benchmark.summary(results, setup)
    shares = {peer: row["share_of_peak"] for peer, row in found["peers"].items()}
    assert shares == {"ours": 0.4, "step": 0.5, "plain": 1.0}  # plain reached more than the products that were timed
    assert found["setup"]["peaks"] == {"no": 6e9, "bf16": 2e10}
    options = SimpleNamespace(scenario="text", epochs=None, rows=320, runs=1)
    lines = benchmark.table(found, options).splitlines()
    assert next(line for line in lines if line.startswith("| plain")).count("|") == 9
    assert any("float32" in line and "100 %" in line for line in lines)


def test_peers_of_predict_need_no_peak(benchmark):
    more = {"without_start_up": 4.0, "start_up_seconds": 1.0}
    results = {"ours-predict": [run(2.0, "", **more)], "pipeline": [run(1.0, "", **more)]}
    found = benchmark.summary(results, {"peaks": {}, "description": "a model", "device": "cpu"})
    assert found["peers"]["pipeline"]["ratio"] == 2.0
    assert found["peers"]["pipeline"]["share_of_peak"] is None
    options = SimpleNamespace(scenario="predict", epochs=None, rows=2, runs=1)
    assert "pipeline" in benchmark.table(found, options)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_peer_trains_the_same_rows(benchmark, make_recipe, tmp_path, monkeypatch, precision):
    import benchmark_peers
    import benchmark_trainers

    (tmp_path / "tiny.yaml").write_text(write_yaml(make_recipe().model_dump(exclude_unset=True)))
    settings = SimpleNamespace(
        scenario="text",
        recipe=str(tmp_path / "tiny.yaml"),
        set=[],
        work=str(tmp_path),
        rows=16,
        epochs=None,
        batch_size=8,
        random_weights=None,
    )
    monkeypatch.setattr(benchmark_peers, "matrix_peaks", lambda device: {"no": 1.0, precision: 2.0})
    setup = benchmark_peers.prepare(settings)
    results = {"step": [benchmark_peers.step_alone(settings)]}
    results |= {peer: [benchmark_trainers.run_peer(peer, settings)] for peer in ("plain", "tuned", "trainer")}
    assert {peer: runs[0]["updates"] for peer, runs in results.items()} == dict.fromkeys(results, 4)
    assert [results[peer][0]["precision"] for peer in ("plain", "tuned", "trainer")] == [precision, precision, "no"]
    assert all(0 < row["share_of_peak"] <= 1 for row in benchmark.summary(results, setup)["peers"].values())
