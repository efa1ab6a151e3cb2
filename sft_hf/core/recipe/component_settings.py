"""Base classes of the settings of tasks and techniques, and the rules for combining techniques.

A task's settings are in its folder, `sft_hf/tasks/*/settings.py`, a technique's in its theme's,
`sft_hf/techniques/*/settings.py`. These files import only `sft_hf.core`, so that a recipe is validated without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import Field

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.sections import DataSection, Section, TrainSection

REGRESSION = "regression"
NO_CLASSES = "it works on the probabilities of classes, and there are none"

CLAIMS = {
    "evaluated_weights": "decide which weights are evaluated and saved",
    "label_frequencies": "compensate for rare labels",
    "loss_function": "replace cross-entropy by another loss",
    "partner_rows": "mix each row with another one",
    "skipped_layers": "skip layers at random",
    "trained_layers": "decide which layers are trained in a step",
}
"""Roles that only one technique of a recipe may have: {claim: the end of the message "A and B both ..."}."""


class TaskSettings(Section):
    """Settings that all tasks share; a task's own class adds its fields."""

    name: str = Field(description="The application scenario: a folder of sft_hf/tasks/.")

    modality: ClassVar[str] = ""
    """The modality of a row: text, image or speech; techniques list those that they do not support in `excluded`."""

    pipeline_tag: ClassVar[str] = ""
    """The task name of the `transformers.pipeline` that opens the saved model."""

    writes_transcripts: ClassVar[bool] = False
    """Whether predictions are transcripts, which are compared with their references word by word."""

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts numbers."""
        return getattr(self, "problem_type", None) == REGRESSION


class RecipeSections(Protocol):
    """The parts of a recipe that a technique's settings may read during validation."""

    @property
    def task(self) -> TaskSettings: ...  # noqa: D102

    @property
    def data(self) -> DataSection: ...  # noqa: D102

    @property
    def train(self) -> TrainSection: ...  # noqa: D102

    @property
    def peft(self) -> dict[str, Any]: ...  # noqa: D102

    @property
    def techniques(self) -> Sequence[TechniqueSettings]: ...  # noqa: D102


class TechniqueSettings(Section):
    """Settings of a technique, its requirements, and what it cannot be combined with."""

    name: str = Field(description="The technique: a file of sft_hf/techniques/; `sft-hf techniques` lists them.")

    claims: ClassVar[frozenset[str]] = frozenset()
    """Keys of `CLAIMS`: two techniques that claim the same thing exclude each other."""

    excluded: ClassVar[Mapping[str, str]] = {}
    """What it cannot be combined with, {name: reason shown to the user}: modalities (text, image, speech), peft, and
    kinds of models (`Task.model_kind`: ctc, multi_label, regression)."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that have an effect in a run of two steps, if the defaults do not (for the tests)."""

    neutral: ClassVar[Mapping[str, Any] | None] = None
    """Settings that leave training unchanged; None if there are none."""

    needs_items: ClassVar[bool] = False
    """Whether it needs `Task.items`, which CTC and regression do not have."""

    needs_head: ClassVar[bool] = False
    """Whether it needs a new head on the backbone (`models.freezing.head_names`), which Whisper does not have."""

    needs_embeddings: ClassVar[bool] = False
    """Whether it needs `Task.as_embeddings`, which some text models do not have."""

    needs_label_counts: ClassVar[bool] = False
    """Whether it needs `Context.label_counts`."""

    needs_partner: ClassVar[bool] = False
    """Whether it needs `TrainBatch.partner`."""

    needs_unlabeled: ClassVar[bool] = False
    """Whether it needs `TrainBatch.unlabeled`."""

    needs_validation: ClassVar[bool] = False
    """Whether it needs a validation split."""

    def check(self, recipe: RecipeSections) -> None:
        """Check requirements that `claims` and `excluded` cannot express. Raises RecipeError."""

    def check_recipe(self, recipe: RecipeSections) -> None:
        """Raise RecipeError if the recipe contains something that the technique cannot be combined with."""
        task = recipe.task
        if reason := self.excluded.get(task.modality):
            raise self._refusal(task.name, reason)
        for other in recipe.techniques:
            if other is not self and (shared := sorted(self.claims & other.claims)):
                raise RecipeError(
                    f"techniques: {self.name} and {other.name} both {CLAIMS[shared[0]]}; choose one of them"
                )
        if recipe.peft and (reason := self.excluded.get("peft")):
            raise self._refusal("peft", reason)
        if task.is_regression and (reason := self.reason_against_regression()):
            raise self._refusal(REGRESSION, reason)
        self.check(recipe)

    def _refusal(self, other: str, reason: str) -> RecipeError:
        return RecipeError(f"techniques: {self.name} cannot be combined with {other}: {reason}")

    @classmethod
    def reason_against_regression(cls) -> str | None:
        """Return why the technique cannot be used for regression; None if it can."""
        return NO_CLASSES if cls.needs_items else cls.excluded.get(REGRESSION)
