"""Short names of recipe keys: settings of `sft_hf.finetune`, and names of other programs, which are only suggested."""

from __future__ import annotations

from collections.abc import Sequence

SHORT_NAMES = {
    "text": "data.text_column",
    "text_pair": "data.text_pair_column",
    "label": "data.label_column",
    "image": "data.image_column",
    "audio": "data.audio_column",
    "transcript": "data.transcription_column",
    "epochs": "train.num_train_epochs",
    "batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "eval.per_device_eval_batch_size",
    "optimizer": "optim.name",
    "scheduler": "optim.lr_scheduler_type",
    "patience": "eval.early_stopping_patience",
    "metric": "eval.metric_for_best_model",
    "revision": "model.revision",
    "training": "train",
}
"""Keyword settings of `sft_hf.finetune` and the keys that they set."""

OTHER_NAMES = {
    "lr": "optim.learning_rate",
    "wd": "optim.weight_decay",
    "warmup": "optim.warmup_ratio",
    "optim_args": "optim.args",
    "lr_scheduler": "optim.lr_scheduler_type",
    "max_epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "n_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "bs": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "accumulate_grad_batches": "train.gradient_accumulation_steps",
    "fp16": "train.mixed_precision",
    "bf16": "train.mixed_precision",
    "precision": "train.mixed_precision",
    "early_stopping": "eval.early_stopping_patience",
    "dataset": "data.name",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "labels": "data.label_column",
    "texts": "data.text_column",
    "images": "data.image_column",
    "max_seq_length": "task.max_length",
    "max_len": "task.max_length",
    "lora": "peft",
}
"""Names of other programs, lower case, for `did you mean ...?`."""


def key_meant(name: str) -> str | None:
    """Return the recipe key for a short name or one of another program; None if there is none.

    >>> key_meant("lr")
    'optim.learning_rate'
    """
    return SHORT_NAMES.get(name.lower()) or OTHER_NAMES.get(name.lower())


def keys_meant(name: str, keys: Sequence[str]) -> list[str]:
    """Return the keys among `keys` that a name in the wrong place may stand for: its own, or in any section.

    >>> keys_meant("language", ["task.language", "task.name"])
    ['task.language']
    """
    meant = key_meant(name)
    return [meant] if meant is not None and meant in keys else [key for key in keys if key.partition(".")[2] == name]
