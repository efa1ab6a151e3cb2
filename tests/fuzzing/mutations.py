"""Bytes and text, changed in ways that parsers stumble over."""

from __future__ import annotations

import random
import struct

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
