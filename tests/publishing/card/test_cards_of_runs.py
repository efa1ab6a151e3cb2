"""Model cards of runs of every task: valid front matter, the run's own numbers, and a snippet that works."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from publishing.card.card_records import CANARY, IMAGE, SPEECH, TEXT, parsed, snippet

from sft_hf.core.recipe.recipe import validate_recipe
from sft_hf.core.run.record import RunRecord, read_record
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.run import predict_files
from sft_hf.publishing.card.model_card import build_card
from sft_hf.publishing.numbers import decimal, metric_value, percent


def run_snippet(card: str, replace: dict[str, str], capsys: Any) -> str:
    """What the card's Python prints, with its placeholders replaced."""
    code = snippet(card)
    for old, new in replace.items():
        assert old in code
        code = code.replace(old, new)
    capsys.readouterr()
    exec(compile(code, "snippet", "exec"), {})
    return capsys.readouterr().out.strip()


def agrees(printed: str, ours: dict[str, Any]) -> None:
    theirs = ast.literal_eval(printed)
    assert theirs == {"label": ours["prediction"], "score": pytest.approx(ours["confidence"], abs=1e-5)}


@pytest.fixture
def text_run(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    return read_record(finetune(make_recipe()).output_dir)


def checked(record: RunRecord, pipeline_tag: str, tmp_path: Path) -> str:
    """The card of a run; what holds for every run is checked."""
    card = build_card(record, pipeline_tag=pipeline_tag)
    data = parsed(card)
    assert card == build_card(record, pipeline_tag=pipeline_tag)
    assert data["pipeline_tag"] == pipeline_tag and data["license"] == "unknown" and "sft-hf" in data["tags"]
    assert "base_model" not in data and "datasets" not in data  # local ones are no Hub ids
    _, results = model_index_to_eval_results(data["model-index"])
    scores = record.metrics["test"]
    assert results[0].metric_value == scores[record.primary] and results[0].dataset_split == "test"
    assert {result.metric_value for result in results} <= {v for v in scores.values() if isinstance(v, float)}
    file = tmp_path / "README.md"
    file.write_text(card, encoding="utf-8")
    assert metadata_load(file) == data
    low, high = scores[f"{record.primary}_ci95"]
    assert f"{percent(scores[record.primary])}**" in card
    assert (f"(95 % interval {percent(low)} to {percent(high)})" in card) == (low < high)
    assert f"on {scores['num_examples']} test " in card
    for private in (str(tmp_path), str(Path.home()), str(Path.cwd()), "/tmp", "output_dir", CANARY):
        assert private not in card
    recipe = re.search(r"```yaml\n(.*?)```", card, flags=re.DOTALL)
    assert recipe is not None and validate_recipe(yaml.safe_load(recipe[1])).seed == record.recipe.seed
    return card


def test_a_text_run(text_run: RunRecord, tmp_path: Path, capsys: Any) -> None:
    card = checked(text_run, TEXT, tmp_path)
    test = text_run.metrics["test"]
    assert "one of 3 labels: sport, money, food" in card
    for row in test["per_class"]:
        figures = " | ".join([*(percent(row[name]) for name in ("precision", "recall", "f1")), str(row["support"])])
        assert f"| {row['label']} | {figures} |" in card
    for name in ("macro_f1", "loss"):
        assert (
            metric_value(name, test[name]) in card and metric_value(name, text_run.metrics["validation"][name]) in card
        )
    assert "Validation chose the best weights; test was scored once" in card
    assert "at most the first 32 tokens" in card
    text = "goal match team bread"
    printed = run_snippet(card, {f"{text_run.name}/model": str(tmp_path / "run" / "model"), "a text": text}, capsys)
    (ours,) = predict_files(tmp_path / "run", [text], mixed_precision="no")
    agrees(printed, ours)


def test_a_run_with_temperature_and_abstention(make_recipe: Any, tmp_path: Path) -> None:
    techniques = ["temperature_scaling", {"name": "abstention", "error_rate": 0.9, "bound": "plain"}]
    run = finetune(make_recipe(techniques=techniques)).output_dir
    record = read_record(run)
    card = checked(record, TEXT, tmp_path)
    told = record.metrics["techniques"]["temperature_scaling"]
    assert f"a temperature of {decimal(told['temperature'])}, fitted on validation" in card
    assert f"there {percent(told['validation_ece'])}, before {percent(told['validation_ece_before'])}." in card
    assert f"on test it answers {percent(record.metrics['test']['coverage'])} of the rows, and " in card
    report = " ".join((run / "report.html").read_text(encoding="utf-8").split())
    assert "scaled by a temperature of" in report and "It abstains below a confidence of" in report


def test_the_card_stands_beside_the_model(text_run: RunRecord, tmp_path: Path) -> None:
    written = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert written == build_card(text_run, pipeline_tag=TEXT)


def test_an_image_run(make_image_recipe: Any, image_folder: Path, tmp_path: Path, capsys: Any) -> None:
    record = read_record(finetune(make_image_recipe()).output_dir)
    card = checked(record, IMAGE, tmp_path)
    assert "Gives an image one of 3 labels: blue, green, red" in card and "test images" in card
    picture = next((image_folder / "test" / "green").glob("*.png"))
    names = {f"{record.name}/model": str(tmp_path / "run" / "model"), "picture.jpg": str(picture)}
    (ours,) = predict_files(tmp_path / "run", [str(picture)])
    agrees(run_snippet(card, names, capsys), ours)


@pytest.mark.long
def test_a_speech_run(
    make_speech_recipe: Any, speech_folder: Path, speech_clip: Any, tmp_path: Path, capsys: Any
) -> None:
    # Enough steps to know the recordings by heart: of a model that knows nothing, the likeliest token is a toss-up.
    recipe = make_speech_recipe(task__language="english", train__max_steps=120, eval__eval_steps=120)
    record = read_record(finetune(recipe).output_dir)
    card = checked(record, SPEECH, tmp_path)
    assert parsed(card)["language"] == "en" and parsed(card)["metrics"] == ["wer", "cer", "exact_match"]
    assert "Transcribes English speech." in card and "(lower is better)" in card
    clip = next((speech_folder / "test").glob("*.wav"))
    names = {f"{record.name}/model": str(tmp_path / "run" / "model"), "recording.wav": str(clip)}
    (ours,) = predict_files(tmp_path / "run", [str(clip)])
    assert soundfile.info(clip).samplerate == 16_000 and ours["prediction"]
    assert " ".join(run_snippet(card, names, capsys).split()) == ours["prediction"]


def test_a_multi_label_run(make_recipe: Any, tmp_path: Path, capsys: Any) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("train", 80), ("validation", 30), ("test", 30)):
        rows = []
        for _ in range(count):
            labels = [label for label in ("goal", "bank") if generator.random() < 0.6]
            rows.append(json.dumps({"text": " ".join([*labels, "the"]), "label": labels}) + "\n")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(rows))
    run = finetune(make_recipe(data__name=str(tmp_path / "data"), train__num_train_epochs=4)).output_dir
    record = read_record(run)
    card = checked(record, TEXT, tmp_path)
    assert "any number of 2 labels" in card and "Micro-F1" in card and "the decision threshold" in card
    printed = run_snippet(card, {f"{record.name}/model": str(run / "model"), "a text": "goal bank the"}, capsys)
    (ours,) = predict_files(run, ["goal bank the"], mixed_precision="no")
    assert sorted(ours["prediction"]) == sorted(json.loads(printed.replace("'", '"'))) == ["bank", "goal"]
