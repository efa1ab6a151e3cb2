"""Settings of text classification in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sft_hf.core.recipe.component_settings import TaskSettings
from sft_hf.core.recipe.sections import Fraction, Section

Pooling = Literal["mean", "max", "attention", "mean_max"]
Encoder = Literal["none", "cnn", "bilstm"]


class WordEmbeddingSettings(Section):
    """The model on top of word vectors, and its vocabulary."""

    pooling: Pooling = Field(
        "attention",
        description="Pooling of word vectors; attention: a mean with learned weights; mean_max: mean and max, "
        "concatenated.",
    )
    encoder: Encoder = Field("none", description="Layer that adds context to word vectors.")
    hidden_size: PositiveInt = Field(100, description="Filters per kernel size (cnn), units per direction (bilstm).")
    kernel_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [3, 4, 5], description="Widths of the cnn's filters, in words."
    )
    dropout: Fraction = Field(0.5, description="Dropout of the word vectors and of the text vector.")
    freeze: bool = Field(False, description="Do not train the word vectors, only the layers on top of them.")
    lowercase: bool = Field(True, description="Ignore letter case.")
    min_count: PositiveInt = Field(2, description="Include words that occur at least N times in the training rows.")
    most_frequent: int = Field(20_000, ge=0, description="Also include the first N words of the file, for new texts.")


class TextClassificationSettings(TaskSettings):
    """Settings of the task."""

    modality = "text"
    pipeline_tag = "text-classification"

    name: Literal["text_classification"] = "text_classification"
    max_length: PositiveInt | None = Field(
        256,
        description="Maximum number of tokens per row; longer rows are truncated and counted. null: the model's limit.",
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = Field(
        "auto",
        description="auto: multi-label if the label column holds lists, else one label per row. regression: the label "
        "column holds numbers to predict, or lists of numbers of equal length.",
    )
    embeddings: WordEmbeddingSettings | None = Field(
        None, description="The model on top of word vectors; only if model.name is a file or folder of word vectors."
    )
