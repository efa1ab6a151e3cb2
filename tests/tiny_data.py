"""Data made on the spot: sentences whose words tell the topic, pictures whose colour tells the class, spoken chords."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = {
    "sport": "goal match team coach league player score win".split(),
    "money": "bank rate dollar market share profit loss stock".split(),
    "food": "bread cheese soup cook taste salt dinner apple".split(),
}
FILLER = "the a of and to in said was on for with at by".split()


def make_rows(count: int, seed: int = 0, topics: tuple[str, ...] = ("sport", "money", "food")) -> list[dict[str, str]]:
    """Sentences whose words tell the topic."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        topic = topics[index % len(topics)]
        length = int(generator.integers(3, 20))
        words = [str(generator.choice(TOPICS[topic] if generator.random() < 0.5 else FILLER)) for _ in range(length)]
        rows.append({"text": " ".join([TOPICS[topic][index % 8], *words]), "label": topic})
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as CSV, columns from the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


COLOURS = {"blue": (30, 40, 200), "green": (40, 180, 50), "red": (200, 40, 30)}


def make_image(label: str, seed: int, size: tuple[int, int] = (40, 32)) -> Any:
    """A noisy picture whose colour tells the class."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(-60, 60, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8))


def write_image_folder(folder: Path, per_class: int, seed: int = 0, suffix: str = ".jpg") -> Path:
    """`per_class` images in a folder per class; sizes vary."""
    for number, label in enumerate(COLOURS):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            size = (30 + 3 * (index % 5), 28 + index % 7)
            image = make_image(label, seed * 10_000 + number * 1000 + index, size)
            image.save(folder / label / f"{index:03}{suffix}")
    return folder


# each word is a chord of its own
SPOKEN = {"one": 220.0, "two": 330.0, "three": 470.0, "four": 640.0, "five": 850.0, "six": 1100.0}
RATE = 16_000


def make_speech(text: str, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A chord of 0.15 s for each word, with a pause behind it and a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(0.15 * rate)) / rate
    parts = []
    for word in text.split():
        tone = sum(np.sin(2 * np.pi * SPOKEN[word] * harmonic * time) / harmonic for harmonic in (1, 2, 3))
        parts += [0.2 * tone * np.hanning(len(time)), np.zeros(round(0.05 * rate))]
    samples = np.concatenate(parts)
    return (samples + 0.001 * generator.standard_normal(len(samples))).astype(np.float32)


def spoken_texts(count: int, seed: int = 0) -> list[str]:
    """Different texts of one to four words."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(" ".join(generator.choice(list(SPOKEN), int(generator.integers(1, 5)))))
    return list(found)


def write_speech_folder(folder: Path, texts: list[str], seed: int = 0) -> Path:
    """metadata.csv with file_name, transcription and speaker, and the recordings beside it."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, text in enumerate(texts):
        soundfile.write(folder / f"{index:02}.wav", make_speech(text, seed * 1000 + index), RATE)
        rows.append({"file_name": f"{index:02}.wav", "transcription": text, "speaker": "ab"[index % 2]})
    write_csv(folder / "metadata.csv", rows)
    return folder
