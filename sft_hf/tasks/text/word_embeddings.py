"""A text classifier on pretrained word vectors: embeddings, an optional encoder, pooling, a linear layer.

Importing this module registers it with Transformers: `AutoModelForSequenceClassification.from_pretrained(folder)` and
`pipeline("text-classification", model=folder)` then load saved models.

Sources: mean pooling, T. Joulin et al., Bag of tricks for efficient text classification, EACL 2017; max and mean-max
pooling, D. Shen et al., Baseline needs more love, ACL 2018; convolutions of several widths, Y. Kim, Convolutional
neural networks for sentence classification, EMNLP 2014; bidirectional LSTM with attention, P. Zhou et al.,
Attention-based bidirectional LSTM, ACL 2016.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordLevelTrainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from sft_hf.models.classifier_output import classifier_output
from sft_hf.tasks.text.embedding_files import EmbeddingSource, read_model2vec, read_vectors
from sft_hf.tasks.text.settings import Encoder, Pooling, WordEmbeddingSettings

log = logging.getLogger("sft_hf")

PAD, UNKNOWN = "[PAD]", "[UNK]"


class WordEmbeddingsConfig(PretrainedConfig):
    """See `WordEmbeddingSettings` for the fields with the same names."""

    model_type = "word_embeddings"

    def __init__(
        self,
        vocab_size: int = 2,
        embedding_size: int = 50,
        pooling: str = "attention",
        encoder: str = "none",
        hidden_size: int = 100,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        freeze: bool = False,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.pooling = pooling
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.kernel_sizes = list(kernel_sizes)
        self.dropout = dropout
        self.freeze = freeze
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


class Convolutions(nn.Module):
    """Parallel convolutions of several widths over the words: [rows, words, size] -> [rows, words, filters]."""

    def __init__(self, size: int, filters: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.layers = nn.ModuleList(nn.Conv1d(size, filters, width) for width in widths)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Padding is treated like the zeros around every text."""
        words = (words * mask).transpose(1, 2)
        outputs = []
        for layer, width in zip(self.layers, self.widths, strict=True):
            outputs.append(functional.relu(layer(functional.pad(words, ((width - 1) // 2, width // 2)))))
        return torch.cat(outputs, dim=1).transpose(1, 2)


class BidirectionalLstm(nn.Module):
    """[rows, words, size] -> [rows, words, 2 * units]; the backward direction starts at the end of each text."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, units, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Padding must be on the right; its outputs are zero."""
        lengths = mask[:, :, 0].sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=words.shape[1])
        return output


class Pool(nn.Module):
    """[rows, words, size] -> [rows, size], or 2 * size for mean_max; padding is ignored, and empty rows give 0."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.scorer = nn.Linear(size, 1) if kind == "attention" else None

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """`mask` is bool [rows, words, 1]."""
        if self.scorer is not None:
            scores = self.scorer(words).float().masked_fill(~mask, torch.finfo(torch.float32).min)
            return (scores.softmax(dim=1) * mask * words).sum(dim=1)
        pooled = []
        if self.kind != "max":
            pooled.append((words * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        if self.kind != "mean":
            highest = words.masked_fill(~mask, -torch.inf).amax(dim=1)
            pooled.append(highest.masked_fill(~mask.any(dim=1), 0.0))
        return torch.cat(pooled, dim=1)


class Backbone(nn.Module):
    """The layers below the linear layer: from token ids to one vector per text."""

    def __init__(self, config: WordEmbeddingsConfig) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder: Convolutions | BidirectionalLstm | None = None
        size = config.embedding_size
        if config.encoder == "cnn":
            self.encoder = Convolutions(size, config.hidden_size, config.kernel_sizes)
            size = config.hidden_size * len(config.kernel_sizes)
        elif config.encoder == "bilstm":
            self.encoder = BidirectionalLstm(size, config.hidden_size)
            size = 2 * config.hidden_size
        self.pool = Pool(config.pooling, size)
        self.out_size = 2 * size if config.pooling == "mean_max" else size

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Pool the word vectors [rows, words, size] of texts; `mask` is bool [rows, words, 1]."""
        words = self.dropout(words)
        if self.encoder is not None:
            words = self.encoder(words, mask)
        return self.dropout(self.pool(words, mask))


class WordEmbeddingsForSequenceClassification(PreTrainedModel):
    """Classifier with one label or (problem_type multi_label_classification) several per text, or regression."""

    config_class = WordEmbeddingsConfig
    base_model_prefix = "backbone"
    config: WordEmbeddingsConfig

    def __init__(self, config: WordEmbeddingsConfig) -> None:
        super().__init__(config)
        for key, kinds in (("pooling", Pooling), ("encoder", Encoder)):
            if getattr(config, key) not in kinds.__args__:  # type: ignore[attr-defined]
                raise ValueError(f"{key} {getattr(config, key)!r}: valid are {', '.join(kinds.__args__)}")  # type: ignore[attr-defined]
        self.num_labels = config.num_labels
        self.backbone = Backbone(config)
        self.classifier = nn.Linear(self.backbone.out_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()
        self._apply_freeze()

    def _apply_freeze(self) -> None:
        self.backbone.embeddings.weight.requires_grad_(not self.config.freeze)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as in Transformers, which makes all parameters trainable, then apply `freeze` of the config."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._apply_freeze()
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize with Xavier: the default standard deviation of 0.02 is for wide layers."""
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word vectors."""
        return self.backbone.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word vectors."""
        self.backbone.embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Return logits [rows, labels] of token ids [rows, words] or their vectors; with labels, the mean loss."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("either input_ids or inputs_embeds is needed")
            input_ids = input_ids.long()  # the tokenizer returns floats for a text without words
            inputs_embeds = self.backbone.embeddings(input_ids)
            if attention_mask is None:
                attention_mask = input_ids != self.config.pad_token_id
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2])
        mask = attention_mask.bool().unsqueeze(-1)
        if not mask.shape[1]:  # the layers do not support texts without words
            mask, inputs_embeds = functional.pad(mask, (0, 0, 0, 1)), functional.pad(inputs_embeds, (0, 0, 0, 1))
        logits = self.classifier(self.backbone(inputs_embeds, mask))
        return classifier_output(logits, labels, self.config.problem_type)


# --- starting point of training -------------------------------------------------------------------------------


class StartingPoint(NamedTuple):
    """A tokenizer, and the vectors of its tokens, float32 [tokens, dimensions]."""

    tokenizer: PreTrainedTokenizerFast
    vectors: np.ndarray


def read_starting_point(
    source: EmbeddingSource, texts: Iterable[str], settings: WordEmbeddingSettings
) -> StartingPoint:
    """Choose the vocabulary and read its vectors.

    The vocabulary has the first `most_frequent` words of the source, and the words that occur `min_count` times in
    `texts`, which should be training rows only. Words that the source lacks are initialized like [UNK]: with the mean
    of all vectors. A model2vec model keeps its own tokenizer and all of its tokens.

    Raises CheckpointError, StorageError.
    """
    if source.kind == "model2vec":
        tokenizer, vectors = read_model2vec(source)
        return StartingPoint(_own_tokenizer(tokenizer), vectors)
    words = frequent_words(texts, settings.min_count, settings.lowercase)
    known, matrix = read_vectors(source, words, settings.most_frequent, settings.lowercase, (PAD, UNKNOWN))
    found = set(known)
    lacking = [word for word in words if word not in found]
    log.info(
        "vocabulary: %d words; %d of the %d in training rows have no vector",
        len(known) + len(lacking),
        len(lacking),
        len(words),
    )
    typical = matrix.mean(axis=0, keepdims=True)
    vectors = np.concatenate([np.zeros_like(typical), typical, matrix, typical.repeat(len(lacking), axis=0)])
    return StartingPoint(word_tokenizer([*known, *lacking], settings.lowercase), vectors)


def frequent_words(texts: Iterable[str], min_count: int, lowercase: bool) -> list[str]:
    """Return the words (as split by `word_tokenizer`) that occur at least `min_count` times, most frequent first."""
    tokenizer = _backend({}, lowercase)
    trainer = WordLevelTrainer(vocab_size=2**31, min_frequency=min_count, show_progress=False, special_tokens=[])
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word not in (PAD, UNKNOWN)]


def word_tokenizer(words: Iterable[str], lowercase: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces and around punctuation marks; its vocabulary is [PAD], [UNK], `words`.

    The texts of a pair are concatenated.
    """
    vocabulary = {word: index for index, word in enumerate(chain((PAD, UNKNOWN), words))}
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(vocabulary, lowercase),
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )


def _backend(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    if lowercase:
        tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def _own_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a model2vec tokenizer. Without a padding token, any token can be used, as padding is masked."""
    names = tokenizer.get_vocab()
    pad = next((name for name in (PAD, "<pad>", UNKNOWN, "<unk>") if name in names), tokenizer.id_to_token(0))
    unknown = next((name for name in (UNKNOWN, "<unk>") if name in names), None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        model_input_names=["input_ids", "attention_mask"],
        **({"unk_token": unknown} if unknown else {}),
    )


def build_classifier(
    start: StartingPoint, settings: WordEmbeddingSettings, head: dict[str, Any]
) -> WordEmbeddingsForSequenceClassification:
    """Return a classifier on these vectors; `head` holds the config fields that describe the labels."""
    size, dimensions = start.vectors.shape
    config = WordEmbeddingsConfig(
        vocab_size=size,
        embedding_size=dimensions,
        pad_token_id=start.tokenizer.pad_token_id,
        **settings.model_dump(include={"pooling", "encoder", "hidden_size", "kernel_sizes", "dropout", "freeze"}),
        **head,
    )
    model = WordEmbeddingsForSequenceClassification(config)
    with torch.no_grad():
        model.backbone.embeddings.weight.copy_(torch.from_numpy(start.vectors))
    return model


AutoConfig.register(WordEmbeddingsConfig.model_type, WordEmbeddingsConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    WordEmbeddingsConfig, WordEmbeddingsForSequenceClassification, exist_ok=True
)
AutoTokenizer.register(WordEmbeddingsConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
