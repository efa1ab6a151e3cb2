"""`predict` answers what it can, names the rest, and says so by its exit code."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from tiny_recipes import tiny_recipe

from sft_hf.cli import run
from sft_hf.core.errors import DataError, UserError
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.run import predict_files


@pytest.fixture(scope="module")
def text_run(checkpoint, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    return finetune(tiny_recipe("text_classification", checkpoint, data_folder, folder, train__max_steps=8)).output_dir


@pytest.fixture(scope="module")
def image_run(image_checkpoint, image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "run"
    recipe = tiny_recipe("image_classification", image_checkpoint, image_folder, folder, train__max_steps=1)
    return finetune(recipe).output_dir


@pytest.fixture(scope="module")
def speech_run(wav2vec2_checkpoint, speech_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech") / "run"
    recipe = tiny_recipe("speech_recognition", wav2vec2_checkpoint, speech_folder, folder, train__max_steps=1)
    return finetune(recipe).output_dir


def predicted(capsys, *arguments, code):
    """Standard output as JSON lines, and standard error."""
    assert run(["predict", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return [json.loads(line) for line in out.splitlines()], err


def test_texts_that_cannot_be_answered_keep_their_place(text_run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("goal match\n\nbank rate\n")
    (tmp_path / "letter.docx").write_bytes(b"PK")
    rows, err = predicted(
        capsys, text_run, "bread", tmp_path / "a.txt", tmp_path / "letter.docx", "gone.csv", "", code=3
    )
    assert [row["prediction"] is None for row in rows] == [False, False, True, False, True, True, True]
    assert [row["id"] for row in rows] == list(range(7))
    assert [row.get("row") for row in rows] == [None, 0, 1, 2, None, None, None]
    assert all(("error" in row) == (row["prediction"] is None) for row in rows)
    for words in ("a.txt row 1", "letter.docx", "gone.csv", "empty", "4 of 7 inputs were not answered"):
        assert words in err


def test_no_answer_at_all_is_exit_2_and_nothing_written(text_run, tmp_path, capsys):
    output = tmp_path / "p.jsonl"
    (tmp_path / "new.csv").write_text("text,x\n ,1\n ,2\n")
    assert run(["predict", str(text_run), str(tmp_path / "new.csv"), "gone.txt", "--output", str(output)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: none of the 3 inputs") and "row 0" in error and "row 1" in error
    assert not output.exists()


def test_each_format_has_a_place_for_what_failed(text_run, tmp_path, capsys):
    quoted = 'goal, "match"\nteam'
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "id": t[:2]}) + "\n" for t in (quoted, " ", "=x")))
    options = [str(text_run), str(tmp_path / "a.jsonl"), "--probabilities", "--output"]
    for name in ("p.csv", "p.txt", "p.json"):
        assert run(["predict", *options, str(tmp_path / name)]) == 3
    capsys.readouterr()
    content = (tmp_path / "p.csv").read_bytes().decode()
    assert content.count("\r\n") == 4
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    whole = json.loads((tmp_path / "p.json").read_text())
    assert [row["text"] for row in rows] == [row["text"] for row in whole] == [quoted, " ", "=x"]
    assert [row["id"] for row in rows] == ["go", " ", "=x"] and [row["row"] for row in rows] == ["0", "1", "2"]
    assert [row["prediction"] for row in rows] == [row["prediction"] or "" for row in whole]
    assert not rows[0]["error"] and "row 1" in rows[1]["error"]
    for row, row_of_csv in ((whole[0], rows[0]), (whole[2], rows[2])):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]
        for label, probability in row["probabilities"].items():
            assert float(row_of_csv[f"probability_{label}"]) == probability
    assert (tmp_path / "p.txt").read_text().split("\n") == [whole[0]["prediction"], "", whole[2]["prediction"], ""]


def test_a_csv_may_begin_with_what_failed(text_run, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\ngoal\n")
    assert run(["predict", str(text_run), str(tmp_path / "a.txt"), "--format", "csv"]) == 3
    bad, good = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert bad["error"] and not bad["prediction"] and good["prediction"] and not good["error"]


def test_texts_can_be_given_literally(text_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "goal").mkdir()
    rows, _ = predicted(capsys, text_run, "--text", "goal", "bank.csv", "-", code=0)
    assert [row["text"] for row in rows] == ["goal", "bank.csv", "-"] and all(row["prediction"] for row in rows)


def test_json_answers_with_one_value_all_the_same(text_run, tmp_path, capsys):
    arguments = ["predict", str(text_run), "goal", "", "--json"]
    assert run(arguments) == 3
    assert [row["prediction"] is None for row in json.loads(capsys.readouterr().out)] == [False, True]
    assert run([*arguments, "--output", str(tmp_path / "p.jsonl")]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["answered"], found["failed"]) == (1, 1)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["goal", None], ["input 1", "NoneType"]),
        (["goal", "bank", " "], ["input 2", "empty"]),
        ([{"text": "goal"}], ["input 0", "dict"]),
        ([3.5], ["input 0", "float"]),
        (None, ["NoneType", "list"]),
        ({"text": ["goal"]}, ["dict", "list"]),
        (b"goal", ["bytes"]),
        (17, ["input 0", "int"]),
    ],
)
def test_python_refuses_what_is_no_text_by_its_index(inputs, words):
    with pytest.raises(DataError) as caught:
        predict_files("nowhere", inputs)  # before the run is opened, or anything answered
    assert all(word in str(caught.value) for word in words), caught.value


def test_python_refuses_a_data_frame():
    import pandas

    with pytest.raises(DataError, match=r"DataFrame.*list\(frame\["):
        predict_files("nowhere", pandas.DataFrame({"text": ["goal"]}))


def test_python_takes_a_string_as_one_text(text_run):
    (row,) = predict_files(text_run, "goal match team")
    assert row["text"] == "goal match team"
    (row,) = predict_files(text_run, "-")  # standard input only on the command line
    assert row["text"] == "-"


def test_python_gets_errors_in_the_rows(text_run, tmp_path):
    (tmp_path / "a.txt").write_text("goal\n\n")
    good, bad = predict_files(text_run, [tmp_path / "a.txt"])
    assert good["prediction"] and bad["prediction"] is None and "row 1" in bad["error"]


# --- pictures and recordings -------------------------------------------------------------------------------------


def test_broken_pictures_do_not_stop_the_others(image_run, image_folder, tmp_path, capsys):
    folder = tmp_path / "new"
    shutil.copytree(image_folder / "test" / "red", folder)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[1]).write_bytes((folder / names[0]).read_bytes()[:40])  # cut off
    (folder / names[2]).write_text("words")
    (folder / "z.jpg").write_bytes(b"")
    (folder / "readme.txt").write_text("words")
    rows, err = predicted(capsys, image_run, folder, code=3)
    assert [row["prediction"] is None for row in rows] == [False, True, True, False, True]
    assert [row["path"] for row in rows] == [str(folder / name) for name in (*names, "z.jpg")]
    assert all(name in err for name in (names[1], names[2], "z.jpg", "readme.txt", "3 of 5"))
    alone = list(predict_files(image_run, [folder / names[0], folder / names[3]]))
    good = [row for row in rows if row["prediction"] is not None]
    assert [row["prediction"] for row in good] == [row["prediction"] for row in alone]
    assert [row["confidence"] for row in good] == pytest.approx([row["confidence"] for row in alone], abs=1e-5)
    assert run(["predict", str(image_run), str(folder), "--output", str(tmp_path / "labels.txt")]) == 3
    assert [bool(line) for line in (tmp_path / "labels.txt").read_text().splitlines()] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_table_of_pictures_names_the_row(image_run, image_folder, tmp_path, capsys):
    good = image_folder / "test" / "red" / "000.png"
    (tmp_path / "list.csv").write_text(f"id,image\na,{good}\nb,gone.png\nc,\n")
    rows, err = predicted(capsys, image_run, tmp_path / "list.csv", code=3)
    assert [(row["id"], row["row"], "error" in row) for row in rows] == [
        ("a", 0, False),
        ("b", 1, True),
        ("c", 2, True),
    ]
    assert "gone.png" in err and "list.csv row 1" in err and "list.csv row 2" in err


def test_pictures_inside_a_table(image_run, image_folder, tmp_path, capsys):
    import pyarrow
    from pyarrow import parquet

    content = (image_folder / "test" / "red" / "000.png").read_bytes()
    cells = [
        {"bytes": content, "path": "red.png"},
        {"bytes": content[:50], "path": None},
        {"bytes": None, "path": None},
    ]
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "a.parquet")
    rows, err = predicted(capsys, image_run, tmp_path / "a.parquet", code=3)
    assert [(row["row"], row["image"], row["prediction"] is None) for row in rows] == [
        (0, "red.png", False),
        (1, None, True),
        (2, None, True),
    ]
    assert "a.parquet row 1" in err and "a.parquet row 2" in err


def test_what_is_for_texts_alone_is_refused(image_run, image_folder, speech_run, speech_folder, capsys):
    assert run(["predict", str(image_run), "--text", "goal"]) == 2
    assert "--text" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match="no classes"):
        list(predict_files(speech_run, [speech_folder / "test" / "00.wav"], probabilities=True))


def test_broken_recordings_do_not_stop_the_others(speech_run, speech_folder, tmp_path, capsys):
    folder = tmp_path / "new"
    shutil.copytree(speech_folder / "test", folder)
    (folder / "01.wav").write_bytes((folder / "01.wav").read_bytes()[:20])
    (folder / "zz.flac").write_bytes(b"fLaC broken")
    rows, err = predicted(capsys, speech_run, folder, code=3)
    assert [row["path"] for row in rows if row["prediction"] is None] == [
        str(folder / n) for n in ("01.wav", "zz.flac")
    ]
    assert len(rows) == 9 and all(name in err for name in ("01.wav", "zz.flac", "metadata.csv", "2 of 9"))
    output = tmp_path / "subtitles"
    assert run(["predict", str(speech_run), str(folder), "--format", "srt", "--output", str(output)]) == 3
    assert sorted(path.stem for path in output.iterdir()) == [f"{n:02}" for n in (0, 2, 3, 4, 5, 6, 7)]


# --- a run's own predictions -------------------------------------------------------------------------------------


def test_the_predictions_of_a_run_hold_what_they_are_about(
    text_run, image_run, speech_run, data_folder, image_folder, speech_folder
):
    def read(folder):
        return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]

    with open(data_folder / "test.csv", newline="") as file:
        wanted = dict(enumerate(csv.DictReader(file)))
    for row in read(text_run):
        assert (row["text"], row["reference"]) == (wanted[row["id"]]["text"], wanted[row["id"]]["label"])
    for row in read(image_run):
        assert row["reference"] in row["path"] and row["path"].startswith(str(image_folder / "test"))
    assert sorted(row["path"] for row in read(speech_run)) == sorted(map(str, (speech_folder / "test").glob("*.wav")))
    assert all({"id", "reference", "prediction", "confidence"} <= row.keys() for row in read(speech_run))


@pytest.mark.parametrize(
    ("option", "words"),
    [("probabilitys", "did you mean probabilities"), ("max_lenght", "did you mean max_length"), ("window", "speech")],
)
def test_an_unknown_option_of_predict_suggests_the_nearest(text_run, option, words):
    with pytest.raises(UserError, match=rf"no option '{option}'; .*{words}"):
        list(predict_files(text_run, ["a text"], **{option: True}))
