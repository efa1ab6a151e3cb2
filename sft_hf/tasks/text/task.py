"""Text classification with any model that `AutoModelForSequenceClassification` supports, or with word vectors (see
`sft_hf.tasks.text.embedding_files`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.sections import ModelSection
from sft_hf.data.columns import column_values, read_row_ids
from sft_hf.data.examples import Examples
from sft_hf.data.loading.text_rows import check_texts
from sft_hf.data.row_cache import RowCache
from sft_hf.models.loading import load_pretrained, open_checkpoint, opens, quiet_transformers
from sft_hf.models.pooling import choose_pooling
from sft_hf.models.sentence_encoder import SentenceEncoderConfig, build_encoder, is_saved, load_encoder
from sft_hf.models.token_limits import (
    check_end_of_text,
    choose_max_length,
    fit_embeddings,
    fit_inputs,
    give_pad_token,
    position_table,
    set_padding,
)
from sft_hf.models.trained_heads import settle_head
from sft_hf.tasks.base import Batch, Task, vocabulary_digest
from sft_hf.tasks.classification import ClassifierTask
from sft_hf.tasks.regression import RegressionTask
from sft_hf.tasks.text.embedding_files import EmbeddingSource, find_embeddings
from sft_hf.tasks.text.reader import TextReader
from sft_hf.tasks.text.settings import TextClassificationSettings, WordEmbeddingSettings
from sft_hf.tasks.text.tokens import forget_last_call, open_token_cache, tokenize
from sft_hf.tasks.text.word_embeddings import (
    StartingPoint,
    build_classifier,
    read_starting_point,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from sft_hf.core.recipe.recipe import Recipe
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

PAD_TO_MULTIPLE_OF = 8


class TextClassification(ClassifierTask[TextClassificationSettings]):
    """Assigns one label or several to a text, or to a pair of texts."""

    predict_precision = "auto"
    peft_task_type = "SEQ_CLS"
    reader: TextReader
    word_vectors: EmbeddingSource | None = None
    start: StartingPoint
    train_where: str | None = None
    pooling: str | None = None  # of a new head on an encoder's token vectors; None: the architecture's own head

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.reader = TextReader(recipe.data)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None until it is loaded."""
        return self.reader.tokenizer

    @property
    def max_length(self) -> int:
        """Maximum number of tokens per row; set with the tokenizer."""
        return self.reader.max_length

    @classmethod
    def serving(cls, recipe: Recipe) -> type[Task[Any]]:
        """See `Task.serving`."""
        return TextRegression if recipe.task.is_regression else cls

    def fit(self, train: Dataset, where: str, source: Source) -> None:
        """See `Task.fit`."""
        self.config: Any = None
        self.word_vectors = find_embeddings(source)
        self.train_where = where
        if self.word_vectors is None:
            self._open_checkpoint(source)
        elif self.recipe.model.config_overrides:
            raise RecipeError("model.config_overrides: word vectors have no config; use task.embeddings")
        elif self.recipe.model.pooling != "auto":
            raise RecipeError("model.pooling: for word vectors, set task.embeddings.pooling")
        self.fit_labels(train, where, self.settings.problem_type, self.config)

    def _open_checkpoint(self, source: Source) -> None:
        if self.settings.embeddings is not None:
            raise RecipeError(
                f"task.embeddings requires word vectors, but {source.name} is not a word-vector file (.txt, .vec, "
                ".bin, .gz, or a folder with .npy and .parquet, or a model2vec model); remove it, or change model.name"
            )
        self.config = open_checkpoint(AutoConfig, source, "config.json")
        self.pooling = choose_pooling(self.config, source, self.recipe.model.pooling)
        if self.pooling is not None:
            log.info("pooling: %s of the token vectors, with a new head on it (model.pooling)", self.pooling)
        elif not opens(AutoModelForSequenceClassification, self.config, source):
            raise CheckpointError(
                f"{source.name}: a {self.config.model_type!r} model cannot classify text; give one that "
                "AutoModelForSequenceClassification opens (BERT, RoBERTa, DeBERTa, ModernBERT, MiniLM, ...)"
            )
        self._use_tokenizer(open_checkpoint(AutoTokenizer, source, "tokenizer files"), source.name)

    def _choose_vocabulary(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary of a model on word vectors; only the first call has an effect.

        A run first prepares its training rows, without those held out of train, and only their words are used; for a
        stream, which is read later, there are no such words.
        """
        if self.word_vectors is not None and self.tokenizer is None:
            self.start = read_starting_point(self.word_vectors, texts, self._embedding_settings)
            self._use_tokenizer(self.start.tokenizer, self.recipe.model.name)

    @property
    def _embedding_settings(self) -> WordEmbeddingSettings:
        return self.settings.embeddings or WordEmbeddingSettings()

    def _use_tokenizer(self, tokenizer: Any, name: str) -> None:
        give_pad_token(tokenizer, self.config, name)
        if self.pooling is None:
            check_end_of_text(tokenizer, self.config, name)
        self.reader.tokenizer = tokenizer
        table = None if self.config is None else position_table(self.config, self._without_weights)
        if self.config is not None:
            fit_inputs(tokenizer, self.config, table, decoder=self._is_decoder)
        self.reader.max_length = choose_max_length(self.settings.max_length, self.config, tokenizer, table, name)
        marks = tokenizer.num_special_tokens_to_add(pair=len(self.reader.text_columns) > 1)
        if self.max_length < marks + len(self.reader.text_columns):  # tokenizers would not truncate then
            raise RecipeError(
                f"task.max_length: {self.max_length} tokens leave no room for a text: the tokenizer of {name} adds "
                f"{marks} special tokens; set {marks + len(self.reader.text_columns)} or more"
            )

    def _without_weights(self, config: Any) -> nn.Module:
        if self.pooling is not None:
            return build_encoder(config)
        set_padding(config, self.tokenizer)
        return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-any-return]

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        return {**super().identity(), "vocabulary": vocabulary_digest(self.tokenizer)}

    def build_model(self, source: Source, section: ModelSection) -> PreTrainedModel:
        """See `Task.build_model`."""
        self._choose_vocabulary(())
        if self.word_vectors is not None:
            return build_classifier(self.start, self._embedding_settings, self.head_config())
        head = self.head_config()
        model: PreTrainedModel
        if self.pooling is not None:
            model = load_encoder(self.config, source, section, head, self.pooling)
        elif isinstance(self.config, SentenceEncoderConfig) and not is_saved(source):  # an adapter will be loaded
            model = load_encoder(self.config.text_config, source, section, head, self.config.pooling)
        else:
            set_padding(self.config, self.tokenizer)
            model = load_pretrained(AutoModelForSequenceClassification, self.config, source, section, head)
        fit_embeddings(model, self.tokenizer, source.name, adapted=bool(self.recipe.peft))
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return settle_head(model, self.head_rows)

    def prepare(self, split: Dataset, where: str) -> Examples:
        """See `Task.prepare`."""
        check_texts(split, self.reader.text_columns, where)
        split, labels, skipped = self.labelled_rows(split, where)
        is_train = where == self.train_where
        self._choose_vocabulary(
            chain.from_iterable(column_values(split, column) for column in self.reader.text_columns) if is_train else ()
        )
        columns = [split[column] for column in self.reader.text_columns]
        row_ids = read_row_ids(split)
        table, notes = tokenize(self.tokenizer, columns, self.max_length, where, labels, self._token_cache, row_ids)
        references = [None] * len(row_ids) if labels is None else labels
        return Examples(table, table.lengths, row_ids, references, [*skipped, *notes])

    @cached_property
    def _token_cache(self) -> RowCache | None:
        gigabytes = self.row_cache_gigabytes
        return open_token_cache(self.tokenizer, self.max_length, gigabytes) if gigabytes else None

    def measured_lengths(self, examples: Examples) -> tuple[str, np.ndarray]:
        """See `Task.measured_lengths`: tokens, after truncation."""
        return "tokens", examples.lengths

    def longest_row(self) -> int | None:
        """See `Task.longest_row`: tokens."""
        return self.max_length

    def collate(self, features: list[dict[str, Any]]) -> Batch:
        """Pad to the longest row; with labels, to a multiple of 8 (limited by `max_length`)."""
        longest = max(len(row["input_ids"]) for row in features)
        multiple = (
            PAD_TO_MULTIPLE_OF if "labels" in features[0] else 1
        )  # for short texts, padding could double the cost
        width = min(-(-longest // multiple) * multiple, max(self.max_length, longest))
        fill = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0),
            "attention_mask": 0,
        }
        batch: Batch = {}
        names = [name for name in features[0] if name != "labels"]
        for name in [*names, "attention_mask"]:
            padded = np.full((len(features), width), fill[name], dtype=np.int64)
            for row, feature in zip(padded, features, strict=True):
                values = feature.get(name, 1)
                length = len(feature["input_ids"])
                row[slice(-length, None) if self.tokenizer.padding_side == "left" else slice(length)] = values
            batch[name] = torch.from_numpy(padded)
        if "labels" in features[0]:
            batch["labels"] = self.label_tensor([feature["labels"] for feature in features])
        return batch

    @property
    def _is_decoder(self) -> bool:
        """Whether the architecture's own classifier reads the last token of a text."""
        return type(self.config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(self.config) not in MODEL_FOR_MASKED_LM_MAPPING

    @property
    def no_embeddings(self) -> str | None:  # type: ignore[override]
        """See `Task.no_embeddings`: some models need the token ids to find the end of a text."""
        if self.pooling is not None:
            return None
        if getattr(self.config, "is_encoder_decoder", False):
            return f"{self.config.model_type!r} does not accept inputs_embeds"
        if self._is_decoder and self.tokenizer.padding_side == "right":
            return (
                f"{self.config.model_type!r} cannot find the end of a text from token embeddings; "
                "model.pooling=last can"
            )
        return None

    def as_embeddings(self, model: nn.Module, batch: Batch) -> tuple[str, Batch]:
        """See `Task.as_embeddings`: token embeddings, float [rows, tokens, size], before positions are added."""
        if "inputs_embeds" in batch:
            return "inputs_embeds", batch
        rest = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
        vectors = model.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
        return "inputs_embeds", {"inputs_embeds": vectors, **rest}

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """See `Task.save`."""
        self.write_decisions(model.config)
        # So that a pipeline with `truncation=True` truncates long texts as in training.
        self.tokenizer.model_max_length = self.max_length
        forget_last_call(self.tokenizer)
        with quiet_transformers():
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def restore(cls, recipe: Recipe, folder: Path) -> tuple[Task[Any], PreTrainedModel]:
        """See `Task.restore`."""
        from sft_hf.core.sources.sources import resolve
        from sft_hf.tasks.restore import build_trained

        source = replace(resolve(str(folder)), trusted=recipe.model.trust_remote_code)
        task = cls(recipe)
        task.config = open_checkpoint(AutoConfig, source, "config.json")
        task.read_head(task.config)
        task._use_tokenizer(open_checkpoint(AutoTokenizer, source, "tokenizer files"), source.name)
        return task, build_trained(task, recipe, source)


class TextRegression(RegressionTask[TextClassificationSettings], TextClassification):
    """Predicts one number or several for a text, or for a pair of texts."""

    predict_precision = "no"

    def example_batch(self) -> Batch:
        """See `RegressionTask.example_batch`."""
        examples = self.reader.prepare_inputs([dict.fromkeys(self.reader.text_columns, "a text")])
        return self.collate(list(examples.features))
