"""Text classification of a file by `transformers.pipeline` with its defaults, for comparison with `sft-hf predict`.

usage: plain_pipeline.py MODEL TEXTS.jsonl COLUMN OUTPUT.jsonl
"""

import json
import sys
from pathlib import Path

from transformers import pipeline

import sft_hf.models.sentence_encoder  # noqa: F401 - the model class that the text recipes save


def main() -> None:
    """Write one JSON line per text: its label and the label's probability."""
    model, source, column, output = sys.argv[1:]
    texts = [json.loads(line)[column] for line in Path(source).read_text(encoding="utf-8").splitlines()]
    answers = pipeline("text-classification", model=model)(texts, truncation=True)
    with open(output, "w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps({"prediction": answer["label"], "confidence": answer["score"]}) + "\n")


if __name__ == "__main__":
    main()
