"""The pages of `sft-hf techniques`, built from the technique classes."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from sft_hf.core.recipe.component_settings import CLAIMS, NO_CLASSES, TaskSettings, TechniqueSettings
from sft_hf.core.recipe.registry import component_names, load_component, load_settings

WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """A setting of a technique: its name, default (None if required) and description."""

    name: str
    default: Any
    description: str


@dataclass(frozen=True)
class TechniquePage:
    """The documentation of a technique."""

    name: str
    summary: str
    details: str
    paper: str
    modalities: tuple[str, ...]
    """Of the supported tasks: text, image, speech."""

    claims: tuple[str, ...]
    """What only one technique of a recipe may do: keys of `CLAIMS`."""

    rivals: dict[str, str]
    """Other techniques with the same claim, and what both do."""

    excluded: dict[str, str]
    needs_items: bool
    needs_head: bool
    settings: tuple[Setting, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)

    def tasks_line(self) -> str:
        """Return the modalities; speech is marked if only models with (or without) a decoder qualify."""
        partly = self.needs_items or self.needs_head or "ctc" in self.excluded
        return ", ".join(f"{name}*" if name == "speech" and partly else name for name in self.modalities)

    def lines(self) -> list[str]:
        """Return the page as lines of text."""
        lines = [f"{self.name}: {self.summary}", "", *textwrap.wrap(self.details, WIDTH)]
        lines += [""] if self.details else []
        lines += textwrap.wrap(f"Paper: {self.paper}", WIDTH, subsequent_indent="       ")
        lines += [f"Tasks: {', '.join(self.modalities)}"]
        if self.needs_items and "speech" in self.modalities:
            lines += ["       speech recognition with a decoder (Whisper), not with CTC"]
        if self.needs_head and "speech" in self.modalities:
            lines += ["       speech recognition with CTC, not with a decoder (Whisper), which has no new head"]
        if self.needs_items:
            lines += textwrap.wrap(f"Not with regression: {NO_CLASSES}", WIDTH, subsequent_indent="  ")
        for name, both in self.rivals.items():
            lines += textwrap.wrap(f"Not with {name}: both {both}", WIDTH, subsequent_indent="  ")
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
    """Return the page of a technique. Raises RecipeError for an unknown name, listing the known ones."""
    cls = load_component("techniques", name)
    settings_class: type[TechniqueSettings] = load_settings("techniques", name)
    summary, _, details = (cls.__doc__ or "").partition("\n")
    settings = [
        Setting(key, None if field.is_required() else field.get_default(), field.description or "")
        for key, field in settings_class.model_fields.items()
        if key != "name"
    ]
    tasks: list[type[TaskSettings]] = [load_settings("tasks", task) for task in component_names("tasks")]
    excluded = settings_class.excluded
    return TechniquePage(
        name=name,
        summary=summary.strip(),
        details=" ".join(details.split()),
        paper=cls.paper,
        modalities=tuple(task.modality for task in tasks if task.modality not in excluded),
        claims=tuple(sorted(settings_class.claims)),
        rivals=_rivals(settings_class),
        excluded=dict(excluded),
        needs_items=settings_class.needs_items,
        needs_head=settings_class.needs_head,
        settings=tuple(settings),
    )


def _rivals(settings: type[TechniqueSettings]) -> dict[str, str]:
    """Return the other techniques with the same claims, and what both do."""
    others: list[type[TechniqueSettings]] = [
        load_settings("techniques", name) for name in component_names("techniques")
    ]
    return {
        other.model_fields["name"].default: CLAIMS[claim]
        for other in others
        if other is not settings
        for claim in sorted(settings.claims & other.claims)
    }
