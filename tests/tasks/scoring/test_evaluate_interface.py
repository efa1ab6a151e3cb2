"""Metrics as `evaluate` knows them: batches, combinations, plain results, and nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from slow_metrics import MULTI, SINGLE, multi_data, single_data
from tiers import long

from sft_hf.tasks.scoring import classification as metrics


def test_every_metric_is_an_evaluate_metric():
    for metric in [kind() for kind in SINGLE + MULTI]:
        assert isinstance(metric, evaluate.Metric)
        assert metric.description == type(metric).__doc__
        assert set(metric.features) == {"predictions", "references"}
    assert metrics.MacroF1().name == "macro_f1"


def test_batches_and_single_examples_add_up():
    predictions, references = single_data()
    metric = metrics.MacroF1()
    metric.add_batch(predictions=predictions[:10], references=references[:10])
    metric.add_batch(predictions=predictions[10:39].tolist(), references=references[10:39].tolist())
    metric.add(prediction=predictions[39], reference=references[39])
    assert metric.compute() == metrics.MacroF1().compute(predictions=predictions, references=references)


def test_compute_takes_what_was_added_and_starts_afresh_afterwards():
    metric = metrics.Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 0.75}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    metric.add(prediction=0, reference=1)
    assert metric.compute() == {"accuracy": 0.0}
    with pytest.raises(ValueError, match="N >= 1"):
        metric.compute()


def test_a_refused_batch_leaves_no_trace():
    metric = metrics.Accuracy()
    metric.add_batch(predictions=[0], references=[0])
    with pytest.raises(ValueError, match="same shape"):
        metric.add_batch(predictions=[0, 0, 0], references=[1])
    assert metric.compute() == {"accuracy": 1.0}


@pytest.mark.parametrize("metric", MULTI)
def test_multi_label_batches_add_up(metric):
    scores, references = multi_data()
    predictions = scores if metric is metrics.MeanAveragePrecision else (scores >= 0.5).astype(int)
    batched = metric()
    batched.add_batch(predictions=predictions[:20], references=references[:20])
    batched.add_batch(predictions=predictions[20:], references=references[20:])
    assert batched.compute() == metric().compute(predictions=predictions, references=references)
    batched.add_batch(predictions=predictions, references=references)
    batched.add_batch(predictions=[[1]], references=[[1]])
    with pytest.raises(ValueError):
        batched.compute()  # batches of different width
    assert batched.compute(predictions=[[1]], references=[[1]]) == metric().compute(predictions=[[1]], references=[[1]])


def test_arguments_reach_a_metric_that_was_given_batches():
    matrix, rows = metrics.ConfusionMatrix(), metrics.PerClass()
    matrix.add_batch(predictions=[0, 1], references=[1, 1])
    rows.add_batch(predictions=[0, 1], references=[1, 1])
    assert matrix.compute(num_labels=2) == {"confusion_matrix": [[0, 0], [1, 1]]}
    assert [row["label"] for row in rows.compute(label_names=["a", "b"])["per_class"]] == ["a", "b"]


def test_metrics_combine():
    both = evaluate.combine([metrics.Accuracy(), metrics.MacroF1()])
    both.add_batch(predictions=[0, 1], references=[0, 1])
    assert both.compute() == {"accuracy": 1.0, "macro_f1": 1.0}


def test_results_are_plain_python():
    predictions, references = single_data()
    scores, truth = multi_data()
    single = metrics.single_label_metrics(predictions, references, list("abcde"))
    multi = metrics.multi_label_metrics(scores, truth, np.float32(0.5), list("abcd"))
    for result in (single, multi):
        assert json.loads(json.dumps(result)) == result
        assert not [value for value in _leaves(result) if type(value) not in (int, float, str)]
        for key in ("accuracy", "macro_f1", "micro_f1"):
            if key in result:
                low, high = result[f"{key}_ci95"]
                assert 0.0 <= low <= result[key] <= high <= 1.0


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


# The whole life of every metric in a process of its own, whose home is an empty folder and whose sockets and
# writes are watched: an import or a constructor that writes would otherwise have done so long ago.
WATCHED = """
import os, sys
written = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"network: {event} {arguments}")
    if armed and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(arguments[0])
    if armed and event in ("os.mkdir", "os.rename"):
        written.append(arguments[0])
armed = False
sys.addaudithook(watch)
from sft_hf.tasks.scoring import classification as metrics
armed = True
for kind in (metrics.Accuracy, metrics.MacroF1):
    metric = kind()
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add(prediction=0, reference=1)
    metric.compute()
for kind in (metrics.MultiLabelF1, metrics.MeanAveragePrecision):
    metric = kind()
    metric.add_batch(predictions=[[0, 1]], references=[[1, 1]])
    metric.compute()
metrics.single_label_metrics([0, 1], [1, 1], ["a", "b"])
metrics.multi_label_metrics([[0.1, 0.9]], [[1, 1]], 0.5, ["a", "b"])
armed = False
print("written:", [path for path in written if path != os.devnull])
"""


def real(commands, folder, environment):
    command = [sys.executable, "-c", WATCHED]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def forked(commands, folder, environment):
    """Of a process that has imported everything: imports are watched in a real one alone."""
    return commands.python("-c", WATCHED, cwd=folder, **environment)


@pytest.mark.parametrize("start", [forked, long(real)])
def test_nothing_is_written_and_no_connection_is_tried(commands, tmp_path, start):
    root = Path(metrics.__file__).parents[3]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "PYTHON"))}
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TMPDIR": str(tmp_path)}
    environment = kept | home | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = start(commands, tmp_path, environment)
    assert (done.returncode, done.stdout.strip()) == (0, "written: []"), done.stderr
    assert list(tmp_path.rglob("*")) == []
    assert "Warning" not in done.stderr
