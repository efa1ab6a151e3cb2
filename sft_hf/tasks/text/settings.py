"""What a recipe may set for text classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sft_hf.core.recipe.component_settings import TaskSettings
from sft_hf.core.recipe.sections import Fraction, Section

Pooling = Literal["mean", "max", "attention", "mean_max"]
Encoder = Literal["none", "cnn", "bilstm"]


class WordEmbeddingSettings(Section):
    """The model on top of word vectors, and the words it knows."""

    pooling: Pooling = Field(
        "attention",
        description="From the words' vectors to the text's; attention: a mean with learned weights; mean_max: both.",
    )
    encoder: Encoder = Field("none", description="What lets a word's vector depend on its neighbours.")
    hidden_size: PositiveInt = Field(100, description="Filters per kernel size (cnn), units per direction (bilstm).")
    kernel_sizes: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [3, 4, 5], description="Words that a filter of the cnn sees, one width after the other."
    )
    dropout: Fraction = Field(0.5, description="On the word vectors and on the text's vector.")
    freeze: bool = Field(False, description="Keep the word vectors as they are; train only what is on top of them.")
    lowercase: bool = Field(True, description="Words that differ only in case are one word.")
    min_count: PositiveInt = Field(2, description="Know the words that occur so often in the training rows.")
    most_frequent: int = Field(
        20_000, ge=0, description="Know so many words from the start of the file too, for texts to come."
    )


class TextClassificationSettings(TaskSettings):
    """Settings of the task."""

    modality = "text"
    pipeline_tag = "text-classification"

    name: Literal["text_classification"] = "text_classification"
    max_length: PositiveInt | None = Field(
        256, description="Tokens per row; longer rows are cut, and counted. null: the most the model takes."
    )
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = Field(
        "auto",
        description="auto: multi-label if the label column holds lists, else one label per row. regression: the label "
        "column holds numbers to predict, or lists of as many numbers in each row.",
    )
    embeddings: WordEmbeddingSettings | None = Field(
        None, description="Only where model.name is a file or folder of word vectors: the model on top of them."
    )
