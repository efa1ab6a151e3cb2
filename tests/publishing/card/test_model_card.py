"""Model cards of records made by hand: what is told when, and nothing that data can break."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
from huggingface_hub import metadata_eval_result
from publishing.card.card_records import (
    CANARY,
    SPEECH,
    TEXT,
    body,
    card_of,
    html,
    parsed,
    recipe_of,
    record_of,
    scores_of,
    snippet,
)

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.numbers import percent
from sft_hf.publishing.report.run_report import build_report


def test_what_is_on_the_hub_is_named() -> None:
    record = record_of(["a", "b"], recipe=recipe_of(license="MIT"))
    card = card_of(record, repo_id="me/good-model")
    data = parsed(card)
    assert data["base_model"] == "org/base" and data["datasets"] == ["org/reviews"] and data["license"] == "mit"
    (index,) = data["model-index"]
    expected = metadata_eval_result(
        model_pretty_name="good-model",
        task_pretty_name="Text classification",
        task_id=TEXT,
        metrics_pretty_name="Accuracy",
        metrics_id="accuracy",
        metrics_value=0.9,
        dataset_pretty_name="org/reviews",
        dataset_id="org/reviews",
        dataset_config="en",
        dataset_split="test",
        dataset_revision="b" * 40,
    )["model-index"][0]
    assert index["name"] == expected["name"] and index["results"][0]["dataset"] == expected["results"][0]["dataset"]
    assert index["results"][0]["task"] == expected["results"][0]["task"]
    assert index["results"][0]["metrics"][0] | {"verified": False} == expected["results"][0]["metrics"][0]
    assert 'model="me/good-model"' in snippet(card) and card.count("# good-model\n") == 1
    assert 'model="runs/reviews/model"' in snippet(card_of(record))


def test_a_license_that_the_hub_does_not_list_is_other() -> None:
    data = parsed(card_of(record_of(["a"], recipe=recipe_of(license="My own: license"))))
    assert (data["license"], data["license_name"]) == ("other", "my-own-license")


def test_the_baseline_is_the_comparison() -> None:
    card = card_of(record_of(["a", "b"]))
    assert f"always answering 'a': {percent(0.5)} (95 % interval {percent(0.45)} to {percent(0.55)})" in card
    assert "overlap" not in card and "**The model is" not in card and "The model is clearly better" in card
    near = {"description": "a guess", "metrics": {"accuracy": 0.89, "accuracy_ci95": [0.87, 0.91]}}
    assert "the intervals overlap" in card_of(record_of(["a", "b"], baseline=near))
    worse = {"description": "a guess", "metrics": {"accuracy": 0.95, "accuracy_ci95": [0.93, 0.97]}}
    assert "**The model is clearly worse**" in card_of(record_of(["a", "b"], baseline=worse))
    assert "There is no baseline" in card_of(record_of(["a", "b"], baseline=None))


def test_all_baselines_are_listed_and_a_better_one_is_a_limit() -> None:
    told = {"value": -0.04, "ci95": [-0.07, -0.01], "p_value": 0.003}
    words = {"name": "tf-idf", "description": "logistic regression on words", "difference": told}
    words |= {"split": "test", "metrics": {"accuracy": 0.94, "accuracy_ci95": [0.92, 0.96]}}
    first = record_of(["a", "b"]).metrics["baseline"]
    card = card_of(record_of(["a", "b"], baselines=[first, words]))
    results, limits = card.split("## Limits")
    assert "always answering 'a': " in results and "logistic regression on words: " in results
    assert results.count("**The model is clearly worse**: 4.0 points worse") == 1
    assert "The model is clearly worse than logistic regression on words" in limits
    unsure = words | {"difference": {**told, "p_value": 0.2}}
    card = card_of(record_of(["a", "b"], baselines=[first, unsure]))
    assert card.count("which may be chance") == 2 and card.count("not clearly different") == 2
    assert "clearly worse" not in card


def test_names_of_folders_and_data_without_a_source() -> None:
    trash = {"notes": ["trash: 1 file skipped: not images: notes.txt", "validation: 3 rows held out"]}
    card = card_of(record_of(["a"], recipe=recipe_of(data={"name": "/home/me/trash"}), data=trash))
    assert "- trash: 1 file skipped" in card and "- Validation: 3 rows" in card
    card = card_of(record_of(["a"], recipe=recipe_of(data={"name": "memory"})))
    assert "rows passed from Python" in card and "`memory`" not in card.split("## Training")[0]


def test_lower_is_better_for_word_error_rates() -> None:
    scores = {"num_examples": 100, "num_words": 900, "wer": 0.1, "wer_ci95": [0.08, 0.12]}
    speech = {
        "primary_metric": "wer",
        "validation": {},
        "recipe": recipe_of(task={"name": "speech_recognition", "language": "de"}),
    }
    theirs = {"description": "the checkpoint before training", "metrics": {"wer": 0.7, "wer_ci95": [0.6, 0.8]}}
    groups = {name: {"num_examples": 50, "num_words": 450, "wer": wer} for name, wer in (("old", 0.05), ("new|", 0.15))}
    confusions = [
        {"kind": "substitution", "reference": "six", "prediction": "sex", "count": 4},
        {"kind": "deletion", "reference": "the", "prediction": None, "count": 2},
        {"kind": "insertion", "reference": None, "prediction": "um", "count": 1},
    ]
    test = {**scores, "groups": groups, "confusions": confusions}
    card = card_of(record_of([], test=test, baseline=theirs, **speech), SPEECH)
    assert "**The model is" not in card and "Transcribes German speech" in card
    assert f"{percent(0.15)} for new\\|, {percent(0.05)} for old" in card
    assert "| six | sex | 4 |" in card and "| the | (nothing) | 2 |" in card and "| um |" not in card
    perfect = {**test, "wer": 0.0, "wer_ci95": [0.0, 0.0]}
    assert f"{percent(0.0)} to {percent(0.0)}" not in card_of(record_of([], test=perfect, **speech), SPEECH)
    for windows in ("6", "2 or 4 or 6"):
        data = {"notes": [f"Whisper's window: {windows} of 30 s (the longest clip has 5.9 s)"]}
        assert "a pipeline uses the full window" in card_of(record_of([], test=test, data=data, **speech), SPEECH)
    assert "pipeline uses" not in card
    worse = {**theirs, "metrics": {"wer": 0.1, "wer_ci95": [0.08, 0.12]}}
    assert "**The model is not clearly different**" in card_of(
        record_of([], test=scores, baseline=worse, **speech), SPEECH
    )


@pytest.mark.parametrize(
    ("accuracies", "error", "words"),
    [
        ((0.4, 0.9), 0.082, "overconfident, by 8.2 points"),
        ((0.9, 1.0), 0.1, "underconfident, by 9.8 points"),
        ((0.45, 0.99), 0.0, "well calibrated"),
        ((0.45, 0.97), 0.016, "well calibrated"),
        ((0.85, 0.89), 0.16, "overconfident on some rows"),
    ],
)
def test_what_the_confidence_means(accuracies: tuple[float, float], error: float, words: str) -> None:
    test = scores_of(["a", "b"])
    for entry, accuracy in zip(test["calibration"], accuracies, strict=True):
        entry["accuracy"] = accuracy
    record = record_of(["a", "b"], test={**test, "ece": error})
    card = card_of(record)
    assert words in build_report(record, {}), "card and report agree"
    assert words in card and f"calibration error: {percent(error)}" in card
    assert f"Of the 80 answers with a confidence above {percent(0.933)}, {percent(accuracies[1])} are right" in card


def test_temperature_and_abstention_are_told_where_they_were_chosen() -> None:
    told = {
        "temperature_scaling": {"temperature": 1.8312, "validation_ece_before": 0.0831, "validation_ece": 0.0214},
        "abstention": {"threshold": 0.7131, "coverage": 0.9, "selective_error": 0.03},
    }
    test = {**scores_of(["a", "b"]), "coverage": 0.874, "selective_error": 0.041}
    validation = {**scores_of(["a", "b"]), "coverage": 0.9, "selective_error": 0.03}
    card = card_of(record_of(["a", "b"], techniques=told, test=test, validation=validation))
    section = card.split("## Calibration")[1].split("\n## ")[0]
    temperature = f"a temperature of 1.831, fitted on validation: expected calibration error there {percent(0.0214)}"
    assert f"{temperature}, before {percent(0.0831)}." in section
    assert "abstains below a confidence of 0.7131; on test it answers " in section
    for coverage, wrong in ((0.874, 0.041), (0.9, 0.03)):
        assert f"it answers {percent(coverage)} of the rows, and {percent(wrong)} of these answers are wrong" in section
    assert "a plain pipeline ignores them" in section
    alone = card_of(record_of(["a", "b"], techniques={"abstention": {**told["abstention"], "threshold": None}}))
    assert "It abstains from every answer" in alone and "temperature" not in alone
    without = card_of(record_of(["a", "b"]))
    for words in ("temperature", "abstain", "plain pipeline"):
        assert words not in without
    other = card_of(record_of(["a", "b"], techniques={"swa": {"epochs": 2}, "abstention": {}}))
    assert other == without


def test_the_adapter_of_a_merged_model_is_opened_from_its_folder() -> None:
    facts = {"peft_type": "LORA", "architecture": "BertForSequenceClassification", "head": {"num_labels": 2}}
    model = {"name": "org/base", "revision": "a" * 40, "num_parameters": 1000}
    merged = record_of(["a", "b"], model={**model, "peft": {**facts, "output": "merged"}})
    use = card_of(merged, repo_id="me/reviews").split("## Use")[1].split("\n## ")[0]
    assert 'pipeline("text-classification", model="me/reviews")' in use
    base = f'BertForSequenceClassification.from_pretrained("org/base", revision="{"a" * 40}", num_labels=2)'
    assert f"base = {base}\n" in use
    assert 'PeftModel.from_pretrained(base, "me/reviews", subfolder="adapter")' in use
    assert 'PeftModel.from_pretrained(base, "runs/reviews/adapter")' in card_of(merged)
    apart = card_of(
        record_of(["a", "b"], model={**model, "peft": {**facts, "output": "adapter"}}), repo_id="me/reviews"
    )
    assert 'PeftModel.from_pretrained(base, "me/reviews")' in apart and "subfolder" not in apart
    assert "PeftModel" not in card_of(record_of(["a", "b"], model=model), repo_id="me/reviews")


def test_limits_come_from_the_data(tmp_path: Path) -> None:
    labels = ["common", "rare"]
    test = scores_of(labels)
    test["per_class"][1]["support"] = 3
    data = {
        "revision": "b" * 40,
        "splits": {"train": {"num_examples": 507, "labels": {"common": 500, "rare": 7}}},
        "findings": [
            {"level": "warning", "text": "2 of 53 test rows (3.8%) are in train too: rows 1 (is train row 4)"},
            {"level": "warning", "text": "train has fewer than 10 rows of rare (7); add some"},
            {"level": "note", "text": "test: always answering 'common' would have accuracy 0.94"},
        ],
        "notes": [f"{tmp_path}/test.csv: 5 of 53 rows (9.4%) are longer than 256 tokens and were truncated"],
    }
    card = card_of(record_of(labels, test=test, data=data))
    assert "- Fewer than 20 training rows: rare (7)." in card
    assert "- Fewer than 20 test rows, too few for reliable figures: rare (3)." in card
    assert "common as rare (10 of 50)" in card
    assert "- 2 of 53 test rows (3.8%) are in train too.\n" in card
    assert "tokens of a text; the rest is cut. test.csv: 5 of 53 rows" in card and str(tmp_path) not in card
    assert card.count("rare (7)") == 1 and "always answering 'common'" not in card
    assert "- Not measured: texts of other sources" in card


HOSTILE = [
    "|",
    "a | b",
    "<script>alert(1)</script>",
    "---",
    "`code` ``` more",
    "two\nlines\r\n---\n",
    "\u2028\u0085\x00\x1b[31m",
    "**bold** _it_ ~~no~~",
    "[link](javascript:alert(1))",
    "![i](http://evil.example/x.png)",
    "https://evil.example www.evil.example me@evil.example",
    "&lt;b&gt; \\| \\",
    "😀 :smile: #1 $x$",
    "\u202eright to left",
    "",
    " ",
    "</details><h1>",
    "x" * 500,
    "\ud800",
    "{{ 7 * 7 }} {% raw %}",
]


def test_labels_stay_words_whatever_they_are() -> None:
    splits = {"train": {"labels": dict.fromkeys(HOSTILE, 3)}}
    baseline = {"description": "\n---\n| <script>", "metrics": {"accuracy": 0.1}}
    findings = [{"level": "warning", "text": f"rows of {label}" * 3} for label in HOSTILE]
    recipe = recipe_of(
        model={"name": "/models/](x)|<b>"},
        data={
            "name": "/data/`|<b>\n---\nx: y",
            "label_names": [
                label.replace("\x00", "").replace("\ud800", "") + str(i) for i, label in enumerate(HOSTILE)
            ],
            "test_split": "te\n---\nst",
        },
    )
    data = {"splits": splits, "findings": findings, "notes": HOSTILE}
    record = record_of(HOSTILE, baseline=baseline, data=data, recipe=recipe)
    record = RunRecord('"""\n```\n<i>|\\', record.recipe, record.metrics, [], [])
    card = card_of(record)
    card.encode("utf-8")
    page = html(card)
    outside = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    allowed = "h1 h2 p strong table thead tbody tr th td ul li code details summary".split()
    assert set(re.findall(r"</?([A-Za-z][\w-]*)", outside)) <= set(allowed)
    assert "href" not in outside and "src=" not in page and "<em>" not in page and "<hr" not in page
    tables = re.findall(r"<tbody>(.*?)</tbody>", page, flags=re.DOTALL)
    rows = [re.findall(r"<td", row) for row in re.findall(r"<tr>(.*?)</tr>", tables[1], flags=re.DOTALL)]
    assert [len(row) for row in rows] == [5] * len(HOSTILE)
    assert "|" in page and "&lt;script&gt;" in page and "😀" in page
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        *("## Results", "## Calibration", "## Limits", "## Use", "## Training")
    ]
    compile(snippet(card), "snippet", "exec")
    assert not [line for line in card.splitlines() if line.startswith("|") and "x" * 100 in line]


def test_no_test_split() -> None:
    record = record_of(["a", "b"])
    del record.metrics["test"]
    card = card_of(record)
    assert f"**Accuracy {percent(0.93)}** on 100 validation texts" in card
    assert "there was no test split" in card
    assert parsed(card)["model-index"][0]["results"][0]["dataset"]["split"] == "validation"


def test_no_validation_split() -> None:
    record = record_of(["a", "b"])
    del record.metrics["validation"]
    card = card_of(record)
    assert "No choice was made on scored rows" in card and "Validation chose" not in card


def test_nothing_scored() -> None:
    record = record_of([])
    del record.metrics["validation"], record.metrics["test"]
    card = card_of(record)
    assert "This model was not scored" in card and "model-index" not in card and "Not measured" in card
    assert parsed(card)["pipeline_tag"] == TEXT


def test_a_stream() -> None:
    train = {"num_steps": 10, "num_epochs": None, "num_examples": None}
    recipe = recipe_of(data={"name": "org/reviews", "streaming": True}, train={"max_steps": 10})
    record = record_of(["a"], train=train, data={"revision": None}, recipe=recipe)
    card = card_of(record)
    assert "10 steps of a stream" in card and "None" not in body(card).split("<details>")[0]
    assert parsed(card)["datasets"] == ["org/reviews"]


def test_a_thousand_classes() -> None:
    labels = [f"class {number}" for number in range(1000)]
    card = card_of(record_of(labels))
    assert "one of 1,000 labels" in card and "and 988 more" in card
    assert "The 30 worst of 1,000 classes" in card
    assert len(re.findall(r"^\| class ", card, flags=re.MULTILINE)) == 30 and "| class 0 |" in card
    assert len(card) < 20_000


def test_values_that_are_no_numbers() -> None:
    record = record_of(["a", "b"])
    metrics = copy.deepcopy(record.metrics)
    metrics["test"] |= {"accuracy": math.nan, "macro_f1": None, "accuracy_ci95": [math.nan, 1.0], "ece": None}
    card = card_of(RunRecord("x", record.recipe, metrics, [], []))
    assert "nan" not in card.lower() and "model-index" not in card and "## Calibration" not in card


def test_a_secret_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-canary-value")
    card = card_of(record_of(["a", "s3cret-canary-value", CANARY]))
    assert "s3cret-canary" not in card and CANARY not in card


def test_word_vectors_need_an_import() -> None:
    recipe = recipe_of(task={"name": "text_classification", "embeddings": {}}, model={"name": "/x/glove.txt"})
    model = {"revision": None}
    assert "import sft_hf.tasks.text.word_embeddings" in snippet(card_of(record_of(["a"], recipe=recipe, model=model)))
    other = record_of(["a"], model={"revision": "a" * 40, "type": "word_embeddings"})
    assert "import sft_hf.tasks.text.word_embeddings" in snippet(card_of(other))
    assert "import sft_hf" not in snippet(card_of(record_of(["a"])))


def test_pairs_of_texts() -> None:
    recipe = recipe_of(data={"name": "org/pairs", "text_pair_column": "second"})
    card = card_of(record_of(["a"], recipe=recipe))
    assert "Gives a pair of texts one of 1 label" in card and '"text_pair": "second text"' in snippet(card)
