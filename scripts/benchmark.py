"""Benchmark of sft-hf against alternatives: same pretrained model, rows, batch size and seed.

    python scripts/benchmark.py text                      # training speed, median of 3 alternating runs
    python scripts/benchmark.py image --runs 5 --output image.json
    python scripts/benchmark.py text --epochs 1           # whole epochs: also compares the metric and the total
        time
    python scripts/benchmark.py predict                   # sft-hf predict against transformers.pipeline
    python scripts/benchmark.py text --random-weights bert-base     # model sizes whose weights are not available

Peers: `trainer` (Trainer's defaults, the pretrained model unchanged, dynamic padding; for speech the 30-second features
of the well-known example script), `tuned` (Trainer in the fastest precision of this machine, texts grouped by length,
fused AdamW), `plain` (a plain PyTorch step, tuned in the same way, on prepared batches, without sft-hf: the lower limit
of time), `step` (sft-hf's own step, including CPU kernels, on its own prepared batches: shows the overhead of the
loop), `ours`, and with --epochs `probe` (logistic regression on frozen features). Speed is measured in the second of
two epochs over `--rows` rows, between the ends of updates. The share of peak is the FLOP/s of the matrix products that
training needs, divided by the peak measured in the precision of the peer.

`predict` trains the recipe, then times whole commands on its test split, from start to the last answer written, and
reports start-up separately (benchmark_predict.py). Everything runs on the CPU unless there is a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import benchmark_predict

ROWS = {"text": 320, "image": 192, "speech": 64}
PEERS = ("ours", "step", "plain", "tuned", "trainer")
READY = ("step", "plain")  # steps on prepared batches, without evaluation
NAMES = {"no": "float32", "bf16": "bf16", "fp16": "fp16", "": ""}
CHILD = Path(__file__).with_name("benchmark_peers.py")


def main() -> None:
    """Run the measurements, print a table and write JSON."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="sft-hf-benchmark-") as folder:
        work = Path(folder)
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", flush=True)
        peers = choose_peers(options)
        setup = child("prepare", work, options)
        results: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
        for number in range(options.runs):
            for peer in in_turn(peers, number):
                result = measured(peer, work, options)
                results[peer].append(result)
                print(f"  run {number + 1}, {peer}: {short(result)}", flush=True)
    found = summary(results, setup)
    print(table(found, options))
    if options.output:
        Path(options.output).write_text(json.dumps({"options": vars(options), **found}, indent=1), encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=(*ROWS, "predict"))
    parser.add_argument("--recipe", help="another recipe of the scenario, by name or path")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe, for all peers"
    )
    parser.add_argument("--rows", type=int, help="training rows of a speed measurement; texts of `predict` (2000)")
    parser.add_argument("--runs", type=int, default=3, help="alternating runs")
    parser.add_argument("--epochs", type=float, help="train this many epochs on all rows, and score")
    parser.add_argument("--peers", nargs="*", help=f"of {', '.join((*PEERS, 'probe'))}")
    parser.add_argument("--random-weights", metavar="CONFIG", help="bert-base, vit-base or whisper-small, untrained")
    parser.add_argument("--batch-size", type=int, help="rows per update [default: the recipe's]")
    parser.add_argument("--output", metavar="FILE", help="write all results as JSON")
    options = parser.parse_args()
    options.rows = options.rows or ROWS.get(options.scenario, 2000)
    return options


def choose_peers(options: argparse.Namespace) -> list[str]:
    """Return the names of the peers to measure."""
    if options.scenario == "predict":
        return list(benchmark_predict.PEERS)
    if options.peers:
        return list(options.peers)
    return [peer for peer in PEERS if not (options.epochs and peer in READY)]


def in_turn(peers: list[str], number: int) -> list[str]:
    """Return the peers in alternating order."""
    return peers if number % 2 == 0 else list(reversed(peers))


def measured(peer: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a peer once."""
    if options.scenario == "predict":
        return benchmark_predict.measure(peer, work, options.rows)
    return child(peer, work, options)


def child(peer: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement in a separate process and return its results."""
    settings = json.dumps({**vars(options), "work": str(work)})
    done = subprocess.run(
        [sys.executable, str(CHILD), peer, settings],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def short(result: dict[str, Any]) -> str:
    """Return one line about a run."""
    parts = [f"{result['examples_per_second']:.2f} examples/s", f"{result['peak_memory_bytes'] / 1e9:.2f} GB"]
    if "without_start_up" in result:
        parts.append(
            f"start-up {result['start_up_seconds']:.1f} s, {result['without_start_up']:.1f} examples/s without"
        )
    parts += [f"{name} {value:.4f}" for name, value in result.get("metrics", {}).items()]
    return ", ".join(parts)


def summary(results: dict[str, list[dict[str, Any]]], setup: dict[str, Any]) -> dict[str, Any]:
    """Return medians, spreads and ratios to each peer."""
    speeds = {peer: [run["examples_per_second"] for run in runs] for peer, runs in results.items()}
    medians = {peer: statistics.median(values) for peer, values in speeds.items()}
    first = next(iter(results))
    flops = next((runs[0]["flops_per_example"] for runs in results.values() if runs[0].get("flops_per_example")), None)
    peaks = dict(setup["peaks"])
    for peer, runs in results.items():  # a step that exceeds the measured peak shows that the peak is higher
        if flops and (precision := runs[0]["precision"]) in peaks:
            peaks[precision] = max(peaks[precision], medians[peer] * flops)
    rows = {
        peer: {
            "examples_per_second": medians[peer],
            "spread": [min(speeds[peer]), max(speeds[peer])],
            "ratio": medians[first] / medians[peer],
            "peak_memory_bytes": statistics.median(run["peak_memory_bytes"] for run in runs),
            "precision": runs[0].get("precision", ""),
            "share_of_peak": medians[peer] * flops / peaks[runs[0]["precision"]] if flops else None,
            "metrics": [run.get("metrics", {}) for run in runs],
            "seconds": statistics.median(run["seconds"] for run in runs),
            "curves": [run.get("curve", []) for run in runs],
            **median_of(runs, ("without_start_up", "start_up_seconds")),
        }
        for peer, runs in results.items()
    }
    return {"setup": {**setup, "peaks": peaks}, "peers": rows, "flops_per_example": flops, "runs": results}


def median_of(runs: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float]:
    """Return the medians of measurements that only some scenarios have."""
    return {name: statistics.median(run[name] for run in runs) for name in names if name in runs[0]}


def table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the result as Markdown."""
    setup = found["setup"]
    what = f"{options.epochs:g} epochs over all rows" if options.epochs else f"{options.rows} rows"
    named = ", ".join(f"{value / 1e9:.0f} in {NAMES[name]}" for name, value in setup["peaks"].items())
    peaks = f"; matrix products, GFLOP/s: {named}" if named else ""
    lines = [
        "",
        f"{options.scenario}: {setup['description']}; {what}, median of {options.runs} runs; {setup['device']}{peaks}",
        "",
        "| | precision | examples/s | min to max | ours is | peak memory | share of peak | metric |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer, row in found["peers"].items():
        low, high = row["spread"]
        share = f"{100 * row['share_of_peak']:.0f} %" if row["share_of_peak"] else ""
        metrics = "; ".join(f"{name} {value:.4f}" for run in row["metrics"] for name, value in run.items())
        lines.append(
            f"| {peer} | {NAMES[row['precision']]} | {row['examples_per_second']:.1f} | {low:.1f} to {high:.1f} | "
            f"{row['ratio']:.2f}x | {row['peak_memory_bytes'] / 1e9:.2f} GB | {share} | {metrics} |"
        )
    for peer, what in (("step", "loop over its own step"), ("plain", "loop over a plain PyTorch step")):
        if peer in found["peers"]:
            lines.append(f"\n{what}: {100 * (1 / found['peers'][peer]['ratio'] - 1):+.1f} % time")
    lines += start_up_table(found["peers"])
    return "\n".join(lines)


def start_up_table(peers: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table of start-up time and the speed without it, if it was measured."""
    if not all("without_start_up" in row for row in peers.values()):
        return []
    first = next(iter(peers.values()))["without_start_up"]
    lines = ["", "| | start-up | examples/s without it | ours is |", "|---|---|---|---|"]
    for peer, row in peers.items():
        speed = row["without_start_up"]
        lines.append(f"| {peer} | {row['start_up_seconds']:.1f} s | {speed:.1f} | {first / speed:.2f}x |")
    return lines


if __name__ == "__main__":
    main()
