"""What `sft-hf techniques` says: read off the techniques themselves."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from sft_hf.core.recipe.registry import component_names, load_component
from sft_hf.techniques.base import NO_CLASSES

SHORT = {"image_classification": "image", "speech_recognition": "speech", "text_classification": "text"}
WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """A setting of a technique: its name, default (None where there is none) and description."""

    name: str
    default: Any
    description: str


@dataclass(frozen=True)
class TechniquePage:
    """All that there is to say about a technique."""

    name: str
    summary: str
    details: str
    paper: str
    tasks: tuple[str, ...]
    excluded: dict[str, str]
    needs_items: bool
    needs_head: bool
    settings: tuple[Setting, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)

    def tasks_line(self) -> str:
        """Return the tasks in short; speech with a decoder alone, or without one alone, is marked."""
        partly = self.needs_items or self.needs_head or "ctc" in self.excluded
        names = [SHORT.get(task, task) for task in self.tasks]
        return ", ".join(f"{name}*" if name == "speech" and partly else name for name in names)

    def lines(self) -> list[str]:
        """Return the page as a person reads it."""
        lines = [f"{self.name}: {self.summary}", "", *textwrap.wrap(self.details, WIDTH)]
        lines += [""] if self.details else []
        lines += textwrap.wrap(f"Paper: {self.paper}", WIDTH, subsequent_indent="       ")
        lines += [f"Tasks: {', '.join(self.tasks)}"]
        if self.needs_items and "speech_recognition" in self.tasks:
            lines += ["       speech recognition with a decoder (Whisper), not with CTC"]
        if self.needs_head and "speech_recognition" in self.tasks:
            lines += ["       speech recognition with CTC, not with a decoder (Whisper), which has no new head"]
        if self.needs_items:
            lines += textwrap.wrap(f"Not with regression: {NO_CLASSES}", WIDTH, subsequent_indent="  ")
        for name, reason in self.excluded.items():
            lines += textwrap.wrap(f"Not with {name}: {reason}", WIDTH, subsequent_indent="  ")
        lines += ["", "Settings:"]
        for setting in self.settings:
            lines += textwrap.wrap(
                f"{setting.name} ({setting.default}): {setting.description}",
                WIDTH,
                initial_indent="  ",
                subsequent_indent="      ",
            )
        return lines if self.settings else lines[:-2]


def list_techniques() -> list[TechniquePage]:
    """Return the pages of all techniques, by name."""
    return [explain(name) for name in component_names("techniques")]


def explain(name: str) -> TechniquePage:
    """Return the page of a technique. Raises RecipeError with the names that exist."""
    cls = load_component("techniques", name)
    summary, _, details = (cls.__doc__ or "").partition("\n")
    settings = [
        Setting(key, None if field.is_required() else field.get_default(), field.description or "")
        for key, field in cls.Settings.model_fields.items()
        if key != "name"
    ]
    tasks = [task for task in component_names("tasks") if task not in cls.excluded]
    return TechniquePage(
        name=name,
        summary=summary.strip(),
        details=" ".join(details.split()),
        paper=cls.paper,
        tasks=tuple(tasks),
        excluded=dict(cls.excluded),
        needs_items=cls.needs_items,
        needs_head=cls.needs_head,
        settings=tuple(settings),
    )
