"""The peers of scripts/benchmark.py: Trainer as in its example scripts, and tuned; a plain PyTorch step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmark_common import PRECISIONS, Clock, finding, prepared_run, recipe_of
from datasets import Dataset, load_from_disk
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from sft_hf.tasks.scoring.word_errors import WordErrorRate


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock, batch_size: int, total: int) -> None:
        self.clock, self.batch_size, self.total = clock, batch_size, total
        self.curve: list[list[float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        per_epoch = -(-self.total // self.batch_size)
        last = state.global_step % per_epoch == 0
        self.clock.tick(self.total - (per_epoch - 1) * self.batch_size if last else self.batch_size)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = [value for name, value in kwargs["metrics"].items() if name.endswith(("accuracy", "wer"))]
        self.curve += [[self.clock.ends[-1] - self.clock.ends[0], value] for value in found]


def run_peer(name: str, settings: SimpleNamespace) -> dict[str, Any]:
    """Run `trainer`, `tuned`, `plain` or `probe`."""
    if name == "probe":
        return probe(settings)
    if name not in ("trainer", "tuned", "plain"):
        raise SystemExit(f"no peer is called {name}")
    work, recipe = Path(settings.work), recipe_of(settings)
    about = json.loads((work / "about.json").read_text())
    rows = {path.name: load_from_disk(str(path)) for path in (work / "rows").iterdir()}
    set_seed(recipe.seed)
    task = {"predict": "text"}.get(settings.scenario, settings.scenario)
    parts = {"text": _text, "image": _image, "speech": _speech}[task](work / "model", rows, about, recipe)
    precision = "no" if name == "trainer" else about["fastest"]
    if name == "plain":
        return plain_step(parts, settings, recipe, precision)
    clock = Clock()
    ticks = _Ticks(clock, recipe.train.per_device_train_batch_size, len(rows["train"]))
    kind, arguments_kind = (
        (Trainer, TrainingArguments) if task != "speech" else (Seq2SeqTrainer, Seq2SeqTrainingArguments)
    )
    arguments = arguments_kind(**_arguments(name, task, settings, recipe, work, precision))
    trainer = kind(
        model=parts.model,
        args=arguments,
        train_dataset=parts.sets["train"],
        eval_dataset=parts.sets.get("validation"),
        data_collator=parts.collate,
        compute_metrics=parts.metrics,
        callbacks=[ticks],
    )
    trainer.train()
    metrics = {}
    if settings.epochs:
        found = trainer.evaluate(parts.sets["test"], metric_key_prefix="test")
        metrics = {key.removeprefix("test_"): found[key] for key in found if key.endswith(("accuracy", "wer"))}
    return finding(clock, settings, precision, metrics, ticks.curve)


def _arguments(
    name: str, task: str, settings: SimpleNamespace, recipe: Any, work: Path, precision: str
) -> dict[str, Any]:
    train, optim = recipe.train, recipe.optim
    options: dict[str, Any] = {
        "output_dir": str(work / name),
        "num_train_epochs": train.num_train_epochs,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.eval.per_device_eval_batch_size,
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": optim.lr_scheduler_type,
        "warmup_steps": optim.warmup_ratio,
        "weight_decay": optim.weight_decay,
        "eval_strategy": "epoch" if settings.epochs else "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": recipe.seed,
        "remove_unused_columns": task == "text",
    }
    if task == "speech":
        options |= {"predict_with_generate": True}
    if name == "tuned":
        options |= {"bf16": precision == "bf16", "fp16": precision == "fp16", "optim": "adamw_torch_fused"}
        if task == "text":
            options |= {"train_sampling_strategy": "group_by_length"}
    return options


def plain_step(parts: SimpleNamespace, settings: SimpleNamespace, recipe: Any, precision: str) -> dict[str, Any]:
    """Forward, backward, clip, fused AdamW, on prepared batches, without code of sft-hf or Trainer.

    Rows, collator and model are those of `trainer` and `tuned`; texts are grouped by length.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, size, clock = parts.sets["train"], recipe.train.per_device_train_batch_size, Clock()
    model = parts.model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.optim.learning_rate, weight_decay=recipe.optim.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    autocast = torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "no")
    lengths = [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.column_names else [1] * len(rows)
    order = [row for _ in range(2) for row in LengthGroupedSampler(size, lengths=lengths)]
    epochs = (order[: len(rows)], order[len(rows) :])
    chosen = [epoch[start : start + size] for epoch in epochs for start in range(0, len(epoch), size)]
    batches = [parts.collate([rows[row] for row in numbers]) for numbers in chosen]
    for batch in batches:
        given = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = model(**given).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        clock.tick(len(batch["labels"]))
    return finding(clock, settings, precision, {}, [])


def _text(model: Path, rows: dict[str, Dataset], about: dict[str, Any], recipe: Any) -> SimpleNamespace:
    """As in run_classification.py, with dynamic padding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    numbers = {name: index for index, name in enumerate(about["labels"])}
    text, label = about["columns"]["text_column"], about["columns"]["label_column"]

    def encode(batch: Any) -> Any:
        encoded = tokenizer(batch[text], truncation=True, max_length=about["max_length"])
        return {**encoded, "labels": [_number(value, numbers) for value in batch[label]]}

    sets = {role: split.map(encode, batched=True, remove_columns=split.column_names) for role, split in rows.items()}
    # Registers the class of a sentence encoder with a head, which `prepare` may have saved.
    import sft_hf.models.sentence_encoder  # noqa: F401

    built = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, **about["as_it_came"])
    return SimpleNamespace(model=built, sets=sets, collate=DataCollatorWithPadding(tokenizer), metrics=_accuracy)


def _number(value: Any, numbers: dict[str, int]) -> int:
    return numbers[value] if value in numbers else int(value)


def _accuracy(result: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(result[0], -1) == result[1]).mean())}


def _image(model: Path, rows: dict[str, Dataset], about: dict[str, Any], recipe: Any) -> SimpleNamespace:
    """As in run_image_classification.py: random crops of the recipe's size, decoded on access."""
    from PIL import Image
    from torchvision.transforms import v2

    processor = AutoImageProcessor.from_pretrained(model)
    image, label = about["columns"]["image_column"], about["columns"]["label_column"]
    probe = processor(Image.new("RGB", (300, 300)), return_tensors="pt")["pixel_values"][0]
    flip = [v2.RandomHorizontalFlip()] if recipe.task.horizontal_flip else []
    crop = v2.RandomResizedCrop(tuple(probe.shape[1:]), scale=(recipe.task.min_crop_area, 1.0))
    random = v2.Compose(
        [crop, *flip, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )

    def train_view(batch: Any) -> Any:
        return {"pixel_values": [random(_opened(value)) for value in batch[image]], "labels": batch[label]}

    def plain_view(batch: Any) -> Any:
        pixels = [processor(_opened(value), return_tensors="pt")["pixel_values"][0] for value in batch[image]]
        return {"pixel_values": pixels, "labels": batch[label]}

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixel_values"] for row in batch])
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in batch])}

    sets = {role: split.with_transform(train_view if role == "train" else plain_view) for role, split in rows.items()}
    built = AutoModelForImageClassification.from_pretrained(model, dtype=torch.float32)
    return SimpleNamespace(model=built, sets=sets, collate=collate, metrics=_accuracy)


def _opened(value: Any) -> Any:
    import io

    from PIL import Image

    if isinstance(value, dict):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]
    return Image.open(value).convert("RGB")


def _speech(model: Path, rows: dict[str, Dataset], about: dict[str, Any], recipe: Any) -> SimpleNamespace:
    """As in run_speech_recognition_seq2seq.py: features of 30 seconds, computed in advance."""
    import soundfile

    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    audio, text = about["columns"]["audio_column"], about["columns"]["transcription_column"]

    def encode(row: Any) -> Any:
        value = row[audio]
        samples, rate = soundfile.read(value["path"] if isinstance(value, dict) else value)
        features = extractor(samples, sampling_rate=rate)["input_features"][0]
        return {"input_features": features, "labels": tokenizer(row[text]).input_ids}

    sets = {role: split.map(encode, remove_columns=split.column_names) for role, split in rows.items()}
    built = AutoModelForSpeechSeq2Seq.from_pretrained(model, dtype=torch.float32)
    start = built.config.decoder_start_token_id

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = tokenizer.pad([{"input_ids": row["labels"]} for row in batch], return_tensors="pt")
        ids = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
        ids = ids[:, 1:] if bool((ids[:, 0] == start).all()) else ids
        features = torch.tensor(np.stack([np.asarray(row["input_features"], np.float32) for row in batch]))
        return {"input_features": features, "labels": ids}

    def word_errors(result: Any) -> dict[str, float]:
        label_ids = np.where(result.label_ids == -100, tokenizer.pad_token_id, result.label_ids)
        predicted = np.where(result.predictions == -100, tokenizer.pad_token_id, result.predictions)
        said = tokenizer.batch_decode(label_ids, skip_special_tokens=True)
        written = tokenizer.batch_decode(predicted, skip_special_tokens=True)
        return WordErrorRate().compute(predictions=[t.strip() for t in written], references=[t.strip() for t in said])

    return SimpleNamespace(model=built, sets=sets, collate=collate, metrics=word_errors)


def probe(settings: SimpleNamespace) -> dict[str, Any]:
    """Logistic regression on the frozen checkpoint's features."""
    from sft_hf.jobs.baselines.base import Budget, Run
    from sft_hf.jobs.baselines.kinds import frozen_probe

    run = prepared_run(settings)
    clock = Clock()
    clock.tick(0)
    parts = Run(run.recipe, run.task, run.source, run.accelerator, "test", run.all_examples(), run.splits.by_role, [])
    found = frozen_probe(parts, Budget(math.inf, run.accelerator), least=len(run.data.examples))
    clock.tick(len(run.data.examples))
    assert found is not None
    primary = run.task.scorer.primary_metric
    return finding(clock, settings, run.accelerator.mixed_precision, {primary: found.metrics[primary]}, [])
