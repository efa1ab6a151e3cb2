"""Records of runs made by hand, their cards, and what a card says once it is parsed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

from sft_hf.core.recipe.recipe import Recipe, validate_recipe
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.card.model_card import build_card

TEXT, IMAGE, SPEECH = "text-classification", "image-classification", "automatic-speech-recognition"
CANARY = "hf_" + "c4n4ry" * 5


def parsed(card: str) -> dict[str, Any]:
    """The front matter, checked by every offline check that huggingface_hub has."""
    opened = ModelCard(card)
    data = opened.data.to_dict()
    assert ModelCard(str(opened)).data.to_dict() == data == yaml.safe_load(card.split("\n---\n")[0][4:])
    assert data["library_name"] == "transformers"
    if "model-index" in data:
        name, results = model_index_to_eval_results(data["model-index"])
        assert eval_results_to_model_index(name, results) == data["model-index"]
        assert all(result.dataset_type and result.dataset_name and result.dataset_split for result in results)
        assert re.fullmatch(r"[\w./-]+", results[0].dataset_type)
    return data


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def html(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(body(card))


def snippet(card: str) -> str:
    ((_, found),) = re.findall(r"^(`{3,})python\n(.*?)^\1$", card, flags=re.MULTILINE | re.DOTALL)
    return found


def recipe_of(**changes: Any) -> Recipe:
    data: dict[str, Any] = {
        "task": {"name": "text_classification"},
        "model": {"name": "org/base"},
        "data": {"name": "org/reviews", "config_name": "en"},
        "output_dir": "/home/someone/runs/reviews",
    }
    return validate_recipe({**data, **changes})


def scores_of(labels: list[str], support: int = 50, accuracy: float = 0.9) -> dict[str, Any]:
    per_class = [
        {"label": label, "precision": 0.9, "recall": 0.8, "f1": 0.5 + 0.4 * index / len(labels), "support": support}
        for index, label in enumerate(labels)
    ]
    return {
        "loss": 0.3,
        "num_examples": support * len(labels),
        "accuracy": accuracy,
        "macro_f1": 0.85,
        "accuracy_ci95": [accuracy - 0.02, accuracy + 0.02],
        "macro_f1_ci95": [0.8, 0.9],
        "per_class": per_class,
        "confusion_matrix": (40 * np.eye(len(labels), dtype=int) + np.eye(len(labels), k=1, dtype=int) * 10).tolist(),
        "ece": 0.06,
        "calibration": [
            {"low": 0.4, "high": 0.466, "count": 20, "confidence": 0.45, "accuracy": 0.4},
            {"low": 0.933, "high": 1.0, "count": 80, "confidence": 0.99, "accuracy": 0.9},
        ],
    }


def record_of(labels: list[str], **changes: Any) -> RunRecord:
    metrics: dict[str, Any] = {
        "task": "text_classification",
        "primary_metric": "accuracy",
        "test": scores_of(labels),
        "validation": scores_of(labels, accuracy=0.93),
        "baseline": {
            "name": "majority class",
            "description": "always answering 'a'",
            "split": "test",
            "metrics": {"accuracy": 0.5, "accuracy_ci95": [0.45, 0.55]},
        },
        "train": {"num_steps": 10, "num_epochs": 2.0, "num_examples": 500, "best_step": 5, "runtime_seconds": 61.0},
        "model": {"name": "org/base", "revision": "a" * 40, "num_parameters": 1000},
        "data": {"name": "org/reviews", "revision": "b" * 40},
        "environment": {"python": "3.11", "device": "cpu", "num_processes": 1, "num_threads": 2, "versions": {}},
        "seed": 42,
    }
    recipe = changes.pop("recipe", None) or recipe_of()
    return RunRecord("reviews", recipe, {**metrics, **changes}, [], [])


def card_of(record: RunRecord, pipeline_tag: str = TEXT, repo_id: str | None = None) -> str:
    card = build_card(record, pipeline_tag=pipeline_tag, repo_id=repo_id)
    parsed(card)
    return card
