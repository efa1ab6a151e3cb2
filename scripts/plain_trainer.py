"""Text classification with Transformers' Trainer, as in its example scripts, for comparison in reliability.py.

usage: plain_trainer.py CHECKPOINT DATA OUTPUT [STEPS [KEEP [LEARNING_RATE]]]
"""

import sys
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


def main() -> None:
    """Train, resuming from the last checkpoint if there is one, evaluate, save."""
    checkpoint, data, output = sys.argv[1:4]
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 22
    keep = int(sys.argv[5]) if len(sys.argv) > 5 else 2
    rate = float(sys.argv[6]) if len(sys.argv) > 6 else 1e-2
    set_seed(42)
    files = {name: f"{data}/{name}.csv" for name in ("train", "validation")}
    sets = load_dataset("csv", data_files=files)
    labels = sorted(set(sets["train"]["label"]))
    numbers = {label: index for index, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=len(labels))

    def encode(rows):  # type: ignore[no-untyped-def]
        encoded = tokenizer(rows["text"], truncation=True, max_length=32)
        return {**encoded, "labels": [numbers[label] for label in rows["label"]]}

    sets = sets.map(encode, batched=True, remove_columns=["text", "label"])
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=4,
        learning_rate=rate,
        logging_steps=3,
        save_steps=4,
        save_total_limit=keep,
        eval_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=42,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda result: {"accuracy": float((np.argmax(result[0], -1) == result[1]).mean())},
    )
    last = get_last_checkpoint(output) if Path(output).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_model(f"{output}/model")


if __name__ == "__main__":
    main()
