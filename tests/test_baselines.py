"""What scores are compared with, against the same done by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from sft_hf import finetune
from sft_hf.errors import RecipeError


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_most_frequent_label_of_train(make_recipe, data_folder):
    result = finetune(make_recipe(train__max_steps=1))
    baseline = result.metrics["baseline"]
    references = [row["reference"] for row in lines_of(result.output_dir / "predictions.jsonl")]
    most = Counter(result.metrics["data"]["splits"]["train"]["labels"]).most_common(1)[0][0]
    assert baseline["name"] == "majority class" and repr(most) in baseline["description"]
    assert baseline["metrics"]["accuracy"] == pytest.approx(references.count(most) / len(references))
    low, high = baseline["metrics"]["accuracy_ci95"]
    assert low < baseline["metrics"]["accuracy"] < high


def test_multi_label(make_recipe, tmp_path):
    rows = [
        {"text": f"goal bank {index}", "label": ["sport", "money"] if index % 2 else ["money"]} for index in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = finetune(make_recipe(data={"name": str(tmp_path / "train.jsonl")}, train__max_steps=1))
    references = [row["reference"] for row in lines_of(result.output_dir / "predictions.jsonl")]
    right = sum("money" in labels for labels in references)
    missed = sum(len(set(labels) - {"money"}) for labels in references)
    wrong = len(references) - right
    assert result.metrics["baseline"]["metrics"]["micro_f1"] == pytest.approx(2 * right / (2 * right + missed + wrong))


def test_the_untrained_checkpoint_of_speech(make_speech_recipe):
    """A run whose learning rate is next to nothing ends where it began."""
    result = finetune(make_speech_recipe(train__max_steps=1, optim__learning_rate=1e-30))
    baseline = result.metrics["baseline"]
    assert baseline["name"] == "zero-shot"
    assert baseline["metrics"]["wer"] == result.metrics["test"]["wer"]
    assert baseline["metrics"]["wer_ci95"] == result.metrics["test"]["wer_ci95"]


def test_a_new_vocabulary_has_nothing_to_compare_with(make_speech_recipe, wav2vec2_checkpoint):
    result = finetune(make_speech_recipe(model__name=str(wav2vec2_checkpoint), train__max_steps=1))
    assert "baseline" not in result.metrics


def test_none_is_none(make_recipe):
    assert "baseline" not in finetune(make_recipe(train__max_steps=1, eval__baseline="none")).metrics


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_probe_is_logistic_regression_on_what_the_head_is_given(kind, make_recipe, make_image_recipe, monkeypatch):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from sft_hf import process
    from sft_hf.run import _Run
    from sft_hf.run_folder import RunFolder

    recipe = (make_recipe if kind == "text" else make_image_recipe)(eval__baseline="probe", train__max_steps=1)
    run = _Run(recipe, RunFolder(finetune(recipe).output_dir), process.build_accelerator("no", 1))
    run.prepare()
    model = run.training.model.eval()
    model.classifier = torch.nn.Identity()  # what was the head's input is the output now

    def features(examples):
        rows = []
        with torch.no_grad():
            for index in range(len(examples)):
                batch = run.task.collate([examples.features[index]])
                batch.pop("labels")
                rows.append(model(**batch).logits[0].numpy())
        return np.stack(rows)

    train, test = run.data.examples, run.examples["test"]
    scaler = StandardScaler().fit(features(train))
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(features(train)), train.references)
    accuracy = probe.score(scaler.transform(features(test)), test.references)
    baseline = json.loads((run.folder.path / "metrics.json").read_text())["baseline"]
    assert baseline["name"] == "frozen probe"
    assert baseline["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1.5 / len(test))


def test_a_probe_needs_labels(make_speech_recipe):
    with pytest.raises(RecipeError, match=r"eval.baseline: a probe needs one label per row"):
        finetune(make_speech_recipe(eval__baseline="probe", train__max_steps=1))
