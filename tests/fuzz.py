"""Broken recipes, rows, images and recordings, made from a seed: none may end in a traceback, hang, or fill the memory.

usage: fuzz.py KIND,... FIRST COUNT FOLDER     KIND is recipes, rows, images or audio; FOLDER is made by test_fuzz.py

Prints a JSON line for each case that failed, and for each kind one with the counts, the slowest case and the peak
memory. A case is a function of its kind and number alone: it is repeated with COUNT 1, and its input then lies in
FOLDER/KIND-case. FOLDER/KIND.case holds the number of the case that runs, which a crash leaves behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import wave
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 10  # of computing: a case that takes longer hangs; waiting, it may take three times as long on a busy machine
MAX_ADDRESSES = 16 * 2**30  # beyond, a case fails before it takes the machine with it
ROOT = Path(__file__).parents[1]

NASTY = (
    *("", " ", "null", "~", "true", "no", "NaN", ".nan", ".inf", "-.inf", "1e999", "-1", "0", "1" * 400, "9" * 30),
    *("1e-320", "0x10", "[]", "{}", "[[[]]]", "{a: {b: {c: 1}}}", "[1, two, null]", "&a [*a]", "*nowhere", "<<: 1"),
    *("!!python/name:os.system", "!!binary Zm9v", "!!set {a, b}", "2001-01-01", "\u202e", "\ud7ff", "\x07", "'", '"'),
    *("|", ">", "%TAG", "---", "...", "é" * 50, "../../etc/passwd", "/dev/zero", "/proc/self/mem", "pypi://x", "\t"),
    *("pypi://a==1/../..", "a/b/c/d", "text_classification", "image_classification", "speech_recognition", "cat"),
    *(
        "adamw",
        "rprop",
        "lbfgs",
        "auto",
        "fp16",
        "!!bool x",
        "!!timestamp x",
        "!!float ''",
        "!!map [a]",
        "0x" + "f" * 5000,
    ),
    *("? !!set {a}", '"\\0"', '"\\ud800"', "~nosuchuser/x", "x" * 5000, "[" * 90, "[" * 400 + "]" * 400, "1" * 5000),
    *("!!binary /w==", "!!str 5", "{1: 2}", "{~: 1}", "&a {b: *a}", "a\nb", '"a\\nb"', "\x1b[31m", "1e30", "9" * 19),
)
KEYS = (
    *"task task.name data data.name train optim.learning_rate seed model data.label_names techniques".split(),
    *"a.b.c . x..y data.on_bad_row task.augmentation train.max_steps checkpoint model.key_mapping optim.args.a".split(),
    *"output_dir data.validation_fraction data.data_files eval.eval_steps peft task.max_length".split(),
    *"data.split_seed data.delimiter".split(),
    *(
        "optim.args." + "a." * 40 + "a",
        "optim.args" + ".a" * 400,
        "\udcff",
        "model.config_overrides",
        "data.quote_char",
    ),
)
DATA_SETTINGS = {
    "delimiter": (",", ";", "\\t", "", "ab", "\n", '"', "\x00", "é", "a"),
    "quote_char": ("", "'", "\n", "é", ","),
    "skip_lines": (1, 30, 10**18),
    "text_column": ("label", "nothing", "", "row_id", "other"),
    "label_column": ("text", "nothing", "row_id", "other"),
    "text_pair_column": ("label", "text", "nothing"),
    "label_names": ([], ["sport"], ["sport", "money"], ["money", "sport", "x"], ["a", "a"], ["", " "], ["0", "1"]),
    "validation_fraction": (0, 0.5, 0.99, 1e-9),
    "test_fraction": (0, 0.5, 0.99, 1e-300),
    "max_train_samples": (1, 3, 2**62),
    "max_test_samples": (1, 2),
    "split_seed": (0, 2**62),
    "train_split": ("x", "", "validation"),
    "test_split": (None, "train", "x"),
    "data_files": ({"train": "*"}, {"train": "**"}, {"train": ""}, {"train": "train.csv"}),
    "streaming": (True,),
    "stream_buffer_size": (1, 5, 2**62),
}
PATHS = (
    "",
    " ",
    "nothing.png",
    "..",
    ".",
    "/",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "a\x00b",
    "x" * 5000,
    "~",
    "*",
)
PATHS += ("http://localhost/x.png", "data:,x", "1e999", "\u202e", "\udcff".encode("utf-8", "replace").decode(), "fifo")
CELLS = (
    *("", " ", "\x00", "a" * 300_000, '"', '""', '"a\nb"', "'", ",", ",,", "\t", "null", "NaN", "-1", "1e999", "{}"),
    *("[1, 2]", '["a", "b"]', '["a", 3]', "[[[[", "\ufeff", "\u202eabc", "é", "\U0001f600", "true", "0", "1", "1.0"),
    *("1.5", "sport", "b" * 3_000_000, "[" * 5000, '["' + "a" * 9 + '"]', "\r", "\x85", "\u2028", "=1+1", "é" * 70_000),
)


def mutate_bytes(data: bytes, generator: random.Random, header: int = 96) -> bytes:
    """Flip, cut, insert, repeat; most of it near the beginning."""
    out = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        limit = len(out) if generator.random() < 0.3 else min(len(out), header)
        place, kind = generator.randrange(limit), generator.randrange(7)
        if kind <= 1:
            out[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            out[place] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 3:
            number = generator.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 65535, 100_000_000))
            out[place : place + 4] = struct.pack(generator.choice("<>") + "I", number)
        elif kind == 4:
            del out[place : place + generator.choice((1, 2, 8, len(out)))]
        elif kind == 5:
            out[place:place] = bytes(generator.randrange(256) for _ in range(generator.choice((1, 4, 64))))
        else:
            out[place:place] = out[place : place + 32] * generator.choice((1, 50))
    return bytes(out)


def mutate_text(text: str, generator: random.Random) -> str:
    """Change lines, values and keys of a YAML file."""
    lines = text.splitlines()
    for _ in range(generator.choice((1, 1, 2, 4))):
        if not lines:
            break
        place, kind = generator.randrange(len(lines)), generator.randrange(8)
        line = lines[place]
        if kind == 0:
            del lines[place]
        elif kind == 1:
            lines.insert(place, generator.choice(lines))
        elif kind == 2 and ":" in line:
            lines[place] = line[: line.index(":") + 1] + " " + generator.choice(NASTY)
        elif kind == 3:
            words = line.split()
            lines[place] = line.replace(generator.choice(words), generator.choice(NASTY), 1) if words else "?"
        elif kind == 4:
            lines[place] = " " * generator.randrange(6) + line
        elif kind == 5:
            lines[place] = line.replace("a", "aa", 1).replace("t", "", 1)
        elif kind == 6:
            lines.insert(place, generator.choice(NASTY))
        else:
            lines[place] = line[: generator.randrange(len(line) + 1)]
    return "\n".join(lines)


# --- recipes -----------------------------------------------------------------------------------------------------


def recipe_texts(tools: Path) -> list[str]:
    """Every recipe of the package, and small ones on the checkpoints made here."""
    texts = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    kinds = (("text", "text"), ("image", "image"), ("speech", "speech"))
    tasks = {"text": "text_classification", "image": "image_classification", "speech": "speech_recognition"}
    return texts + [
        f"task: {tasks[kind]}\nmodel: {{name: {tools / name}}}\ndata: {{name: .}}\n" for kind, name in kinds
    ]


def bomb(generator: random.Random) -> str:
    """A line of YAML that means far more than it says."""
    count = generator.choice((3, 30, 99, 101, 250, 480, 2000, 50_000, 200_000))
    few = min(count, 20_000)
    kinds = [
        "[" * count,
        "[" * count + "]" * count,
        "{a: " * few + "1" + "}" * few,
        "- " * count,
        "[" + "1," * count + "]",
        "{" + ",".join(f"k{index}: 1" for index in range(few)) + "}",
        f'{{a: &a "{"x" * count}", b: [{",".join(["*a"] * 3000)}]}}',
        "{a0: &a0 [x, x], "
        + ", ".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, generator.randrange(2, 30)))
        + "}",
        "&a [*a]",
        "&a {? *a : 1}",
        "!" * count + " x",
        '"' + "\\" * count + '"',
        "x" * count,
        "0x" + "f" * count,
        "9" * count,
    ]
    return f"\n{generator.choice(('optim', 'task', 'model', 'x', 'techniques'))}: {generator.choice(kinds)}\n"


def mutate_tree(value: Any, generator: random.Random) -> Any:
    """Change one value or key somewhere in plain data; to data that YAML can write."""
    odd = (None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, float("nan"), float("-inf"), 1e308, "", "x", [], {}, [[]])
    if isinstance(value, dict) and value and generator.random() < 0.85:
        key = generator.choice(list(value))
        changed = dict(value)
        kind = generator.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[f"{key}s"] = changed.pop(key)
        elif kind == 2:
            changed[generator.choice((1, 1.5, True, None, "é", "a.b", "__class__"))] = changed[key]
        else:
            changed[key] = mutate_tree(value[key], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.5:
        return [*value, mutate_tree(value[0], generator)]
    return generator.choice((*odd, [value], {"a": value}, [value] * 50, str(value), {"name": value}))


def recipe_bytes(generator: random.Random, text: str) -> bytes:
    """A recipe, broken in one of many ways."""
    import yaml

    kind = generator.randrange(8)
    if kind == 0:
        return mutate_bytes(text.encode(), generator, header=len(text))
    if kind == 1:
        return text.encode(generator.choice(("utf-16", "utf-8-sig", "latin-1", "utf-32", "cp037")), errors="replace")
    if kind == 2:
        return text.encode()[: generator.randrange(len(text))]
    if kind == 3:
        return (text + bomb(generator)).encode()
    if kind == 4:
        tree = yaml.safe_load(text)
        for _ in range(generator.choice((1, 1, 2, 5))):
            tree = mutate_tree(tree, generator)
        return yaml.safe_dump(tree, allow_unicode=True).encode()
    return (mutate_text(text, generator) if kind < 7 else text).encode("utf-8", errors="surrogatepass")


def show(arguments: list[str]) -> tuple[int, str, str]:
    """Run `sft-hf show` with streams that encode as real ones do; return its exit code and what it said on each."""
    from sft_hf.cli import run

    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["show", "--quiet", *arguments])
    out.seek(0)
    err.seek(0)
    return code, out.read(), err.read()


def recipes(generator: random.Random, folder: Path, tools: Path) -> str:
    """A recipe, or overrides, through `sft-hf show`; what is accepted has to survive being saved."""
    path = folder / "recipe.yaml"
    text = generator.choice(recipe_texts(tools))
    broken = generator.random() < 0.7
    path.write_bytes(recipe_bytes(generator, text) if broken else text.encode())
    overrides = []
    if not broken or generator.random() < 0.2:
        for _ in range(generator.randrange(1, 4)):
            value = generator.choice(NASTY) if generator.random() < 0.8 else bomb(generator).partition(": ")[2]
            overrides.append(f"{generator.choice(KEYS)}={value}".replace("\0", ""))
        if generator.random() < 0.1:
            overrides.append(generator.choice(NASTY) or "x")
    code, out, err = show([str(path), "--", *overrides])
    if code not in (0, 2) or "Traceback" in err:
        raise AssertionError(f"exit code {code}: {err[-2500:]}")
    if code and (err.strip().count("\n") or len(err) > 8000):
        raise AssertionError(f"more than a line: {err[-2500:]}")
    if code == 0 and "trust_remote_code: true" not in out:
        path.write_text(out)
        again = show([str(path)])
        if again != (0, out, ""):
            raise AssertionError(f"not the same when it is read again: {overrides} {again[0]} {again[2][-1500:]}")
    return "accepted" if code == 0 else "refused"


# --- data --------------------------------------------------------------------------------------------------------


def prepared(tools: Path, checkpoint: str, generator: random.Random, settings: dict[str, Any], **data: Any) -> str:
    """Everything that a run does with its data: read, fit, prepare, collate, compare, fingerprint."""
    from datasets import Dataset

    from sft_hf.data.fingerprint import fingerprint
    from sft_hf.data.media import MEDIA_KEYS
    from sft_hf.errors import SftError
    from sft_hf.recipe import validate_recipe
    from sft_hf.registry import load_component
    from sft_hf.run_inputs import data_findings, load_data, prepare_split, training_data
    from sft_hf.sources import resolve

    values = {"task": settings, "model": {"name": str(tools / checkpoint)}, "data": data, "train": {"max_steps": 3}}
    try:
        recipe = validate_recipe(values)
        task = load_component("tasks", settings["name"])(recipe)
        splits = load_data(recipe, task, resolve(recipe.model.name))
        train, windows = training_data(recipe, task, splits, 1).epoch(0)
        examples = {"train": train}
        for role, split in splits.by_role.items():
            if role != "train":
                examples[role] = prepare_split(task, split, splits.where[role])
        task.collate([train.features[row] for row in windows[0].micro_batches[0][0].rows])
        for prepared_split in examples.values():
            for row in range(min(len(prepared_split), 12)):
                task.collate([prepared_split.features[row]])
        whole = {role: split for role, split in splits.by_role.items() if isinstance(split, Dataset)}
        data_findings(task, splits, {role: examples[role] for role in whole})
        files = [column for key, column in task.columns().items() if key in MEDIA_KEYS]
        for split in whole.values():
            fingerprint(split, list(task.columns().values()), files)
    except SftError as error:
        if not str(error).strip() or len(str(error)) > 8000:
            raise AssertionError(f"not one line: {str(error)[:2000]!r}") from error
        return "refused"
    return "accepted"


def odd_settings(generator: random.Random, chance: float) -> dict[str, Any]:
    """Settings of the data section, a few of them odd."""
    found: dict[str, Any] = {}
    while generator.random() < chance:
        name = generator.choice(list(DATA_SETTINGS))
        found[name] = generator.choice(DATA_SETTINGS[name])
    return found


def rows(generator: random.Random, folder: Path, tools: Path) -> str:
    """A table: CSV, TSV, JSON lines, JSON or Parquet, some zipped."""
    suffix = generator.choice((".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".json", ".parquet", ".parquet"))
    table: list[dict[str, Any]] = [
        {"text": f"goal {number} match", "label": generator.choice(("sport", "money"))} for number in range(24)
    ]
    for _ in range(generator.choice((0, 0, 0, 1, 3))):
        table[generator.randrange(24)][generator.choice(("text", "label", "other"))] = generator.choice(CELLS)
    if suffix == ".parquet":
        content = parquet(table, generator)
    elif suffix in (".jsonl", ".json"):
        content = json_rows(table, generator, suffix)
    else:
        content = csv_rows(table, generator, "," if suffix == ".csv" else "\t")
    if generator.random() < 0.25:
        content = mutate_bytes(content, generator, header=len(content) if suffix != ".parquet" else 64)
    if suffix == ".parquet" and generator.random() < 0.3:  # its header stands at the end
        keep = max(0, len(content) - generator.choice((16, 400, 2000)))
        content = content[:keep] + mutate_bytes(content[keep:], generator, len(content))
    if generator.random() < 0.03:
        content = b""
    if suffix != ".parquet" and generator.random() < 0.1:
        content, suffix = gzip.compress(content), suffix + ".gz"
        content = mutate_bytes(content, generator) if generator.random() < 0.5 else content
    path = folder / f"train{suffix}"
    path.write_bytes(content)
    name = str(folder if generator.random() < 0.2 else path)
    settings: dict[str, Any] = {"name": "text_classification"}
    if generator.random() < 0.2:
        settings["problem_type"] = generator.choice(("single_label_classification", "multi_label_classification"))
    return prepared(tools, "text", generator, settings, name=name, **odd_settings(generator, 0.25))


def csv_rows(table: list[dict[str, Any]], generator: random.Random, separator: str) -> bytes:
    """The table as CSV without any quoting of its own, some rows ragged, in one of several encodings."""
    headers = (
        *(["text", "label"],) * 12,
        ["text", "text"],
        ["text", ""],
        ["label", "text"],
    )
    names = generator.choice(
        (*headers, ["text", "label", "other"], [""], ["text\x00", "label"], ["row_id", "text", "label"])
    )
    lines = [separator.join(str(row.get(name, "")) for name in names) for row in table]
    for _ in range(generator.choice((0, 0, 0, 0, 1, 3))):
        place = generator.randrange(24)
        lines[place] = generator.choice((lines[place] + separator, separator * 3, '"', "", '"a""b', lines[place] + '"'))
    end = generator.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    text = end.join([separator.join(names), *(lines if generator.random() < 0.95 else [])])
    return text.encode(generator.choice(("utf-8",) * 6 + ("utf-16", "latin-1", "utf-8-sig")), errors="replace")


def json_rows(table: list[dict[str, Any]], generator: random.Random, suffix: str) -> bytes:
    """The table as JSON, with values of odd types."""
    odd = [None, 1, 1.5, True, [], ["a"], {"a": 1}, {}, float("nan"), 10**30, -1, "x" * 10, [["a"]], ["a", 1], {"": 1}]
    odd += ["\ud800", "\x00", 2**63, [None], {"a": {"b": [1, "c"]}}, 1e308]
    column = generator.choice(("text", "label", "other", "row_id"))
    if generator.random() < 0.25:  # all of one kind
        value = generator.choice(odd)
        table = [{**row, column: value} for row in table]
    for _ in range(generator.choice((0, 0, 1, 3))):
        table[generator.randrange(24)][generator.choice(("text", "label", "", "other"))] = generator.choice(odd)
    if generator.random() < 0.15:
        del table[generator.randrange(24)][generator.choice(("text", "label"))]
    if generator.random() < 0.05:  # every row has a key of its own, or a great many
        many, place = generator.choice((24, 5000, 20_000)), generator.choice(("", "other"))
        keys = ({f"key {number}": 1} for number in range(many))
        table = [{**table[0], place: key} if place else {**table[0], **key} for key in keys]
    elif generator.random() < 0.02:
        table = [{**row, **{f"key {number}": 1 for number in range(20_000)}} for row in table[:2]]
    deep = generator.choice((50, 200, 900, 5000, 100_000))
    nested = generator.choice(("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep))
    if generator.random() < 0.1:
        table.insert(generator.choice((0, 5)), generator.choice(({}, [], 1, "x", None)))  # type: ignore[arg-type]
    lines = [json.dumps(row) for row in table]
    if generator.random() < 0.08:
        lines = [line[:-1] + f', "other": {nested}}}' if line.endswith("}") else line for line in lines]
    if suffix == ".json" and generator.random() < 0.8:
        return ("[" + generator.choice((",", ",\n")).join(lines) + "]").encode()
    return (json.dumps({"data": table}) if suffix == ".json" else "\n".join(lines)).encode()


def parquet(table: list[dict[str, Any]], generator: random.Random) -> bytes:
    """The table as Parquet, some with columns of odd types, or with what `datasets` says of them forged."""
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    plain: Any = [row["label"] for row in table]
    deep: Any = "a"
    for _ in range(generator.choice((2, 20, 90))):
        deep = [deep]
    day = datetime.datetime(2001, 1, 1)
    makers: tuple[Any, ...] = (
        *(lambda: pa.array(plain),) * 3,
        *(
            lambda value=value: pa.array([value] * 24)
            for value in (3, 1.5, None, ["a"], {"a": 1}, b"\xff", True, [], deep)
        ),
        *(
            lambda value=value: pa.array([value] * 24)
            for value in (day, day.date(), day.time(), decimal.Decimal("1.5"))
        ),
        lambda: pa.array(plain).dictionary_encode(),
        lambda: pa.array(plain, pa.large_string()),
        lambda: pa.array(plain, pa.string_view()),
        lambda: pa.array([[("a", 1)]] * 24, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([2**62] * 24, pa.timestamp("s")),
        lambda: pa.array([2**62] * 24, pa.duration("us")),
        lambda: pa.array([["a"]] * 24, pa.list_(pa.string(), 1)),
        lambda: pa.array([1.0] * 24, pa.float16()),
        lambda: pa.array([2**64 - 1] * 24, pa.uint64()),
        lambda: pa.array([i % 2 for i in range(24)], pa.int8()),
    )
    texts = [str(row["text"]).replace("\ud800", "") for row in table]
    columns = [pa.array(texts), generator.choice(makers)()]
    names = generator.choice((["text", "label"],) * 5 + (["text", "text"], ["", "label"], ["text", "row_id"]))
    if generator.random() < 0.15:
        columns[0] = generator.choice(makers)()
    made = pa.table(columns, names=names)
    if generator.random() < 0.4:
        made = made.replace_schema_metadata(forged_features(generator))
    sink = io.BytesIO()
    try:
        pq.write_table(made, sink, compression=generator.choice(("snappy", "none", "gzip", "zstd", "brotli")))
    except (pa.ArrowException, NotImplementedError):
        pq.write_table(pa.table({"text": texts, "label": plain}), sink)
    return sink.getvalue()


def forged_features(generator: random.Random) -> dict[str, str]:
    """What `datasets` writes into a Parquet file, with classes and types that the columns have not."""
    kinds: list[Any] = [
        {"names": ["sport", "money"], "_type": "ClassLabel"},
        {"names": [], "_type": "ClassLabel"},
        {"names": ["a", "a"], "_type": "ClassLabel"},
        {"num_classes": -1, "_type": "ClassLabel"},
        {"dtype": "string", "_type": "Value"},
        {"dtype": "int64", "_type": "Value"},
        {"dtype": "nonsense", "_type": "Value"},
        {"_type": "Image"},
        {"_type": "Audio"},
        {"_type": "Nonsense"},
        {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        {"shape": [2, 2], "dtype": "float32", "_type": "Array2D"},
        *([], None, 5, {}, "x", [{}]),
    ]
    features = {name: generator.choice(kinds) for name in ("text", "label") if generator.random() < 0.9}
    text = json.dumps({"info": {"features": features}})
    return {"huggingface": text if generator.random() < 0.8 else mutate_text(text, generator)}


# --- images and recordings ---------------------------------------------------------------------------------------


def lying(content: bytes, generator: random.Random, truths: tuple[int, ...]) -> bytes:
    """Replace a number that the header gives, in whatever form it stands there, by another."""
    found = []
    for form in ("<H", ">H", "<I", ">I", "<Q", ">Q"):
        for truth in truths:
            with contextlib.suppress(struct.error):
                coded = struct.pack(form, truth)
                place = content.find(coded, 0, 4096)
                while place >= 0:
                    found.append((place, form))
                    place = content.find(coded, place + 1, 4096)
    if not found:
        return mutate_bytes(content, generator)
    out = bytearray(content)
    for place, form in generator.sample(found, min(len(found), generator.choice((1, 1, 2, 3)))):
        top = 256 ** struct.calcsize(form) - 1
        number = generator.choice((0, 1, 2, 7, 255, 8000, 65_535, 1_000_000, 10**9, top // 2, top // 2 + 1, top))
        struct.pack_into(form, out, place, min(number, top))
    return bytes(out)


def right_checksums(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, so that the decoder believes them."""
    out, place = bytearray(content), 8
    while place + 12 <= len(out):
        (size,) = struct.unpack_from(">I", out, place)
        if place + 12 + size > len(out):
            break
        struct.pack_into(">I", out, place + 8 + size, zlib.crc32(out[place + 4 : place + 8 + size]))
        place += 12 + size
    return bytes(out)


def large_image(generator: random.Random) -> tuple[bytes, str]:
    """A small file that holds a large picture: nothing about it is broken."""
    from PIL import Image

    mode, kind = generator.choice(
        (("1", "png"), ("L", "png"), ("P", "png"), ("I;16", "png"), ("F", "tiff"), ("L", "webp"))
    )
    size = generator.choice(((8000, 8000), (7999, 8000), (8001, 8000), (20_000, 120), (16_000, 16_000)))
    if kind == "webp" or (mode != "1" and size[0] == 16_000):
        size = (4000, 4000)
    sink = io.BytesIO()
    options = {"compression": "tiff_lzw"} if kind == "tiff" else {}
    Image.new(mode, size, 1 if mode == "1" else 0).save(sink, kind, **options)
    return sink.getvalue(), kind


def media_table(folder: Path, content: bytes, names: list[str], kind: str, generator: random.Random) -> None:
    """A table of paths, odd ones among them; or a Parquet file that holds the files' bytes, as those of the Hub do."""
    target = {"image": "label", "audio": "transcription"}[kind]
    values = ["sport", "money"] if kind == "image" else ["one two", "two one"]
    if generator.random() < 0.5:
        lines = [json.dumps({kind: name, target: values[index % 2]}) for index, name in enumerate(names)]
        lines += [json.dumps({kind: path, target: values[0]}) for path in generator.sample(PATHS, 2)]
        (folder / "train.jsonl").write_text("\n".join(lines))
        if "fifo" in "".join(lines):
            os.mkfifo(folder / "fifo")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[Any] = [{"bytes": Path(name).read_bytes(), "path": name} for name in names]
    odd = (None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": "a\x00b"})
    held += [{"bytes": content, "path": generator.choice(("x.raw", None, "", "/dev/zero"))}, generator.choice(odd)]
    made = pa.table({kind: held, target: [values[index % 2] for index in range(len(held))]})
    if generator.random() < 0.7:
        media = {"_type": kind.capitalize()}
        features = {kind: media, target: {"dtype": "string", "_type": "Value"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, folder / "train.parquet")


def images(generator: random.Random, folder: Path, tools: Path) -> str:
    """A folder of images, one of them broken."""
    path = generator.choice(sorted((tools / "images").iterdir()))
    content, kind = path.read_bytes(), path.suffix[1:]
    way = generator.random()
    if way < 0.45:
        content = mutate_bytes(content, generator, header=generator.choice((48, 96, 600)))
    elif way < 0.9:
        content = lying(content, generator, (40, 32, 39, 31))
        if kind in ("ppm", "pgm"):
            sizes = b"%d %d" % tuple(generator.choice((0, 1, 40, 8000, 10**9, 10**30)) for _ in range(2))
            content = content.replace(b"40 32", sizes, 1)
    elif way < 0.92:
        content, kind = large_image(generator)
    if kind == "png" and generator.random() < 0.8:
        content = right_checksums(content)
    settings: dict[str, Any] = {"name": "image_classification"}
    if generator.random() < 0.3:
        settings["augmentation"] = generator.choice(("trivial", "rand"))
    on_bad_row = generator.choice(("stop", "skip", "skip"))
    names = [str(path) for path in sorted((tools / "pictures").rglob("*.png"))]
    if generator.random() < 0.2:
        media_table(folder, content, names, "image", generator)
        return prepared(tools, "image", generator, settings, name=str(folder), on_bad_row=on_bad_row)
    for name in ("cat", "dog"):
        shutil.copytree(tools / "pictures" / name, folder / "train" / name)
    suffix = kind if generator.random() < 0.7 else generator.choice(("png", "jpg", "txt", "webp"))
    (folder / "train" / "cat" / f"broken.{suffix}").write_bytes(content)
    return prepared(tools, "image", generator, settings, name=str(folder), on_bad_row=on_bad_row)


def odd_recording(generator: random.Random) -> bytes:
    """A recording that is whole, and odd: many channels, other rates, very short, long, or not finite."""
    import numpy as np
    import soundfile

    rate = generator.choice((1, 999, 1000, 8000, 11_025, 44_100, 96_000, 192_000, 655_350))
    channels = generator.choice((1, 2, 8, 255))
    frames = generator.choice((1, 2, 100, rate // 2 + 1, rate * 2, rate * 31, rate * 300))
    frames = max(1, min(frames, 8_000_000 // channels))
    samples = np.zeros((frames, channels), np.float32)
    samples[:: max(1, frames // 100)] = generator.choice((0.0, 0.5, 1e30, float("nan"), float("inf")))
    form, kind = generator.choice((("WAV", "FLOAT"), ("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("WAV", "DOUBLE")))
    sink = io.BytesIO()
    with contextlib.suppress(soundfile.SoundFileError, ValueError):
        soundfile.write(sink, np.nan_to_num(samples) if kind == "PCM_16" else samples, rate, format=form, subtype=kind)
    return sink.getvalue()


def audio(generator: random.Random, folder: Path, tools: Path) -> str:
    """A folder of recordings, one of them broken."""
    path = generator.choice(sorted((tools / "sounds").iterdir()))
    content, kind = path.read_bytes(), path.suffix[1:]
    way = generator.random()
    if way < 0.4:
        content = mutate_bytes(content, generator, header=generator.choice((48, 96, 600)))
    elif way < 0.6:
        frames = (len(content) - 44) // 2
        content = lying(content, generator, (16_000, 1, 2, 16, 32_000, 128_000, frames, 2 * frames, len(content) - 8))
    elif way < 0.75:
        content, kind = lying_wave(generator), "wav"
    elif way < 0.9:
        content, kind = odd_recording(generator), "wav"
    settings: dict[str, Any] = {"name": "speech_recognition"}
    if generator.random() < 0.3:
        settings |= {"speed_factors": [0.5, 2.0], "noise_probability": 0.5}
    if generator.random() < 0.2:
        settings["max_seconds"] = generator.choice((0.001, 1.0, 1e9, 1e308))
    checkpoint = generator.choice(("speech", "ctc"))
    names = sorted(str(path) for path in (tools / "recordings").glob("*.wav"))
    on_bad_row = generator.choice(("stop", "skip", "skip"))
    if generator.random() < 0.2:
        media_table(folder, content, names, "audio", generator)
        return prepared(tools, checkpoint, generator, settings, name=str(folder), on_bad_row=on_bad_row)
    shutil.copytree(tools / "recordings", folder / "train")
    suffix = kind if generator.random() < 0.8 else generator.choice(("wav", "flac", "ogg", "txt", "raw"))
    (folder / "train" / f"broken.{suffix}").write_bytes(content)
    text = generator.choice(("one two", "one two", "x " * 200, "\u202e", "é", "|", "\x00"))
    with open(folder / "train" / "metadata.csv", "a") as file:
        file.write(f"broken.{suffix},{text}\n")
    return prepared(tools, checkpoint, generator, settings, name=str(folder), on_bad_row=on_bad_row)


def lying_wave(generator: random.Random) -> bytes:
    """A WAV file whose header says another rate, width, length or number of channels than there is."""
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\0\1" * 3000)
    content = bytearray(sink.getvalue())
    for _ in range(generator.randrange(1, 4)):
        place, form = generator.choice(
            ((4, "I"), (16, "I"), (20, "H"), (22, "H"), (24, "I"), (28, "I"), (32, "H"), (34, "H"), (40, "I"))
        )
        top = 2 ** (32 if form == "I" else 16) - 1
        struct.pack_into(
            "<" + form,
            content,
            place,
            generator.choice((0, 1, 3, 8, 24, 32, 64, 255, 44_100 % (top + 1), top // 2, top)),
        )
    return bytes(content)


# --- the driver --------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A case took too long."""


def run_cases(kind: Callable[[random.Random, Path, Path], str], first: int, count: int, folder: Path) -> dict[str, Any]:
    """Run cases `first` to `first + count`, printing what failed; return the counts."""
    from sft_hf.process import peak_resident_bytes

    def too_long(*_: Any) -> None:
        raise Hang

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, too_long)
    outcomes: Counter[str] = Counter()
    slowest, largest = (0.0, first), (0, first)
    for number in range(first, first + count):
        (folder / f"{kind.__name__}.case").write_text(str(number))
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # if it hangs where no signal is heard
        started, before = time.process_time(), peak_resident_bytes()
        outcome, said = run_case(kind, number, folder, number > first)
        seconds, grown = time.process_time() - started, peak_resident_bytes() - before
        if said:
            print(json.dumps({"kind": kind.__name__, "case": number, "traceback": said}), flush=True)
        slowest = max(slowest, (seconds, number)) if number > first else slowest  # the first imports the libraries
        largest = max(largest, (grown, number)) if number > first else largest
        outcomes[outcome] += 1
    faulthandler.cancel_dump_traceback_later()
    return {
        "kind": kind.__name__,
        "outcomes": outcomes,
        "slowest_seconds": round(slowest[0], 2),
        "slowest": slowest[1],
        "peak_bytes": peak_resident_bytes(),
        "largest": largest[1],
    }


def run_case(
    kind: Callable[[random.Random, Path, Path], str], number: int, folder: Path, warm: bool
) -> tuple[str, str]:
    """Return a case's outcome, and what there is to say about a failure; the first has to import the libraries."""
    work = folder / f"{kind.__name__}-case"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    generator = random.Random(f"{kind.__name__} {number}")
    seconds = SECONDS if warm else 6 * SECONDS
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(3 * seconds)
    try:
        return kind(generator, work, folder), ""
    except Hang:
        return "hung", f"longer than {seconds} s: {traceback.format_exc()[-2500:]}"
    except Exception:
        return "failed", traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


def main() -> None:
    """Run the cases that the command line names."""
    import logging
    import warnings

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    warnings.simplefilter("ignore")
    logging.getLogger("sft_hf").setLevel(logging.CRITICAL)
    kinds = {function.__name__: function for function in (recipes, rows, images, audio)}
    names, first, count, folder = sys.argv[1:]
    for name in names.split(","):
        print(json.dumps(run_cases(kinds[name], int(first), int(count), Path(folder))), flush=True)


if __name__ == "__main__":
    main()
