"""Broken recipes and overrides, for fuzz.py."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

from mutations import NASTY, mutate_bytes, mutate_text

ROOT = Path(__file__).parents[2]
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
