"""Broken recipes, rows, images and recordings, made from a seed: none may end in a traceback, hang, or fill the memory.

usage: fuzz.py KIND FIRST COUNT FOLDER     KIND is recipes, rows, images or audio; FOLDER is made by test_fuzz.py

Prints a JSON line for each case that failed, and a last one with the counts, the slowest case and the peak memory. A
case is repeated alone with COUNT 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
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

SECONDS = 10  # a case that takes longer hangs
ROOT = Path(__file__).parents[1]

NASTY = (
    *("", " ", "null", "~", "true", "no", "NaN", ".nan", ".inf", "-.inf", "1e999", "-1", "0", "1" * 400, "9" * 30),
    *("1e-320", "0x10", "[]", "{}", "[[[]]]", "{a: {b: {c: 1}}}", "[1, two, null]", "&a [*a]", "*nowhere", "<<: 1"),
    *("!!python/name:os.system", "!!binary Zm9v", "!!set {a, b}", "2001-01-01", "\u202e", "\ud7ff", "\x07", "'", '"'),
    *("|", ">", "%TAG", "---", "...", "é" * 50, "../../etc/passwd", "/dev/zero", "/proc/self/mem", "pypi://x", "\t"),
    *("pypi://a==1/../..", "a/b/c/d", "text_classification", "image_classification", "speech_recognition", "cat"),
    *("adamw", "rprop", "lbfgs", "auto", "fp16"),
)
CELLS = (
    *("", " ", "\x00", "a" * 300_000, '"', '""', '"a\nb"', "'", ",", ",,", "\t", "null", "NaN", "-1", "1e999", "{}"),
    *("[1, 2]", '["a", "b"]', '["a", 3]', "[[[[", "\ufeff", "\u202eabc", "é", "\U0001f600", "true", "0", "1", "1.0"),
    *("1.5", "sport"),
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


# --- one case of each kind ---------------------------------------------------------------------------------------


def recipes(generator: random.Random, folder: Path, tools: Any) -> str:
    """A recipe, or overrides, through `sft-hf show`."""
    from sft_hf.cli import run

    files = sorted((ROOT / "recipes").glob("*.yaml"))
    text = generator.choice(files).read_text()
    path = folder / "recipe.yaml"
    kind = generator.randrange(6)
    overrides = []
    if kind == 0:
        path.write_bytes(mutate_bytes(text.encode(), generator, header=len(text)))
    elif kind == 1:
        data = text.encode(generator.choice(("utf-16", "utf-8-sig", "latin-1")), errors="replace")
        path.write_bytes(data)
    else:
        path.write_text(mutate_text(text, generator) if kind < 5 else text, errors="surrogatepass")
    if kind >= 4:
        keys = (
            "task.name data.name train optim.learning_rate seed model data.label_names techniques a.b.c . x..y".split()
        )
        keys += ["data.on_bad_row", "task.augmentation", "train.max_steps", "checkpoint", "model.key_mapping"]
        overrides = [f"{generator.choice(keys)}={generator.choice(NASTY)}" for _ in range(generator.randrange(1, 4))]
        if generator.random() < 0.2:
            overrides.append(generator.choice(NASTY) or "x")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(["show", str(path), *(value for value in overrides if not value.startswith("-"))])
    if code not in (0, 2) or "Traceback" in said.getvalue():
        raise AssertionError(f"exit code {code}: {said.getvalue()[-1500:]}")
    if code and said.getvalue().strip().count("\n"):
        raise AssertionError(f"more than a line: {said.getvalue()[-1500:]}")
    return "accepted" if code == 0 else "refused"


def prepared(tools: Any, task: str, checkpoint: str, **data: Any) -> str:
    """Everything that a run does with its data: read, fit, prepare, collate."""
    from sft_hf.errors import SftError
    from sft_hf.recipe import validate_recipe
    from sft_hf.registry import load_component
    from sft_hf.run_inputs import data_findings, load_data
    from sft_hf.sources import resolve

    values = {"task": {"name": task}, "model": {"name": str(tools / checkpoint)}, "data": data}
    try:
        recipe = validate_recipe(values)
        made = load_component("tasks", task)(recipe)
        splits = load_data(recipe, made, resolve(recipe.model.name))
        examples = {role: made.prepare(split, splits.where[role]) for role, split in splits.by_role.items()}
        for split in examples.values():
            for row in range(min(len(split), 12)):
                made.collate([split.features[row]])
        data_findings(made, splits, examples)
    except SftError as error:
        if not str(error) or "\n" in str(error).strip():
            raise AssertionError(f"not one line: {error}") from error
        return "refused"
    return "accepted"


def rows(generator: random.Random, folder: Path, tools: Any) -> str:
    """A table: CSV, TSV, JSON lines, JSON or Parquet."""
    suffix = generator.choice((".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".json", ".parquet"))
    path = folder / f"train{suffix}"
    table = [{"text": f"goal {number} match", "label": generator.choice(("sport", "money"))} for number in range(24)]
    for _ in range(generator.randrange(5)):
        table[generator.randrange(24)][generator.choice(("text", "label", "other"))] = generator.choice(CELLS)
    if suffix == ".parquet":
        content = parquet(table, generator)
    elif suffix in (".jsonl", ".json"):
        odd = [None, 1, 1.5, True, [], ["a"], {"a": 1}, float("nan"), 10**30, "x" * 10]
        for _ in range(generator.randrange(3)):
            table[generator.randrange(24)][generator.choice(("text", "label"))] = generator.choice(odd)  # type: ignore[assignment]
        whole: Any = table if generator.random() < 0.8 else {"data": table}
        lines = json.dumps(whole) if suffix == ".json" else "\n".join(json.dumps(row) for row in table)
        content = lines.encode()
    else:
        separator = "," if suffix == ".csv" else "\t"
        names = generator.choice(
            (["text", "label"], ["text", "label"], ["text", "text"], ["text", ""], ["label", "text"])
        )
        lines = separator.join(names) + "\n"
        lines += "\n".join(separator.join(str(row.get(name, "")) for name in names) for row in table)
        content = lines.encode(generator.choice(("utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig")), errors="replace")
    if generator.random() < 0.5:
        content = mutate_bytes(content, generator, header=len(content) if suffix != ".parquet" else 64)
    if suffix == ".parquet" and generator.random() < 0.5:
        content = content[: len(content) // 2] + mutate_bytes(content[len(content) // 2 :], generator, len(content))
    path.write_bytes(content)
    return prepared(tools, "text_classification", "text", name=str(path))


def parquet(table: list[dict[str, Any]], generator: random.Random) -> bytes:
    """The table as Parquet, some with columns of odd types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels: Any = [row["label"] for row in table]
    kinds = (
        labels,
        list(range(24)),
        [1.5] * 24,
        [None] * 24,
        [["a"]] * 24,
        [{"a": 1}] * 24,
        [b"\xff"] * 24,
        [True] * 24,
    )
    columns = {"text": pa.array([row["text"] for row in table]), "label": pa.array(generator.choice(kinds))}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def images(generator: random.Random, folder: Path, tools: Any) -> str:
    """A folder of images, one of them broken."""
    for name in ("cat", "dog"):
        shutil.copytree(tools / "pictures" / name, folder / "train" / name)
    kind = generator.choice(("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"))
    content = (tools / "formats" / f"x.{kind}").read_bytes()
    if kind == "png" and generator.random() < 0.4:  # a size that is a lie, with the right checksum
        sizes = struct.pack(">II", *(generator.choice((0, 1, 3, 30_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
        header = b"IHDR" + sizes + content[24:29]
        content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    else:
        content = mutate_bytes(content, generator)
    suffix = kind if generator.random() < 0.7 else generator.choice(("png", "jpg", "txt", "webp"))
    (folder / "train" / "cat" / f"broken.{suffix}").write_bytes(content)
    on_bad_row = generator.choice(("stop", "skip"))
    return prepared(tools, "image_classification", "image", name=str(folder), on_bad_row=on_bad_row)


def audio(generator: random.Random, folder: Path, tools: Any) -> str:
    """A folder of recordings, one of them broken."""
    shutil.copytree(tools / "recordings", folder / "train")
    kind = generator.choice(("wav", "wav", "flac", "ogg", "mp3"))
    content = (tools / "formats" / f"x.{kind}").read_bytes()
    lie = kind == "wav" and generator.random() < 0.5
    content = lying_wave(generator) if lie else mutate_bytes(content, generator)
    suffix = kind if generator.random() < 0.8 else generator.choice(("wav", "flac", "ogg", "txt"))
    (folder / "train" / f"broken.{suffix}").write_bytes(content)
    with open(folder / "train" / "metadata.csv", "a") as file:
        file.write(f"broken.{suffix},one two\n")
    on_bad_row = generator.choice(("stop", "skip"))
    return prepared(tools, "speech_recognition", "speech", name=str(folder), on_bad_row=on_bad_row)


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


def run_cases(kind: Callable[[random.Random, Path, Any], str], first: int, count: int, folder: Path) -> dict[str, Any]:
    """Run cases `first` to `first + count`, printing what failed; return the counts."""

    def too_long(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    outcomes: Counter[str] = Counter()
    slowest = (0.0, first)
    for number in range(first, first + count):
        work = folder / "case"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        generator = random.Random(f"{kind.__name__} {number}")
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # if it hangs where no signal is heard
        signal.alarm(SECONDS)
        started = time.monotonic()
        try:
            outcome = kind(generator, work, folder)
        except Hang:
            outcome = "hung"
        except Exception:
            outcome = "failed"
            print(json.dumps({"case": number, "traceback": traceback.format_exc()[-3000:]}), flush=True)
        finally:
            signal.alarm(0)
        if outcome == "hung":
            print(json.dumps({"case": number, "traceback": f"longer than {SECONDS} s"}), flush=True)
        slowest = max(slowest, (time.monotonic() - started, number))
        outcomes[outcome] += 1
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"outcomes": outcomes, "slowest_seconds": round(slowest[0], 2), "slowest": slowest[1], "peak_bytes": peak}


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("sft_hf").setLevel(logging.CRITICAL)
    kinds = {function.__name__: function for function in (recipes, rows, images, audio)}
    print(json.dumps(run_cases(kinds[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))), flush=True)
