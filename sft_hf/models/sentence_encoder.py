"""A text classifier on an encoder: token vectors pooled into one vector per text, dropout, a linear layer.

Sentence encoders were trained with a pooling that `AutoModelForSequenceClassification` does not support. BERT's class,
for example, reads the first token through a `pooler` that an encoder with mean pooling has not trained.

Importing this module registers it with Transformers: `AutoModelForSequenceClassification.from_pretrained(folder)` and
`pipeline("text-classification", model=folder)` then load saved models.

Source: N. Reimers and I. Gurevych, Sentence-BERT, EMNLP 2019, section 3 (mean, max and [CLS] pooling).
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from sft_hf.core.errors import CheckpointError
from sft_hf.models.classifier_output import classifier_output
from sft_hf.models.freezing import note_new_weights
from sft_hf.models.loading import (
    apply_overrides,
    checkpoint_errors,
    open_checkpoint,
    quiet_transformers,
    refuse_adapter,
)

if TYPE_CHECKING:
    from sft_hf.core.recipe.recipe import ModelSection
    from sft_hf.core.sources.sources import Source

log = logging.getLogger("sft_hf")

Pooling = Literal["cls", "mean", "max", "last"]


class SentenceEncoderConfig(PretrainedConfig):
    """The pooling and the labels; `text_config` is the config of the encoder.

    Attributes that this config does not have are read from `text_config`: hidden_size, vocab_size, ...
    """

    model_type = "sft_hf_sentence_encoder"  # Transformers names it if this module was not imported
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}  # type: ignore[misc]

    def __init__(
        self,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        pooling: str = "mean",
        classifier_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = AutoConfig.for_model("bert") if text_config is None else text_config
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Like Transformers, but without the encoder's source path and its unused labels."""
        written = super().to_dict()
        for key in ("_name_or_path", "id2label", "label2id"):
            written["text_config"].pop(key, None)
        return written

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("text_config")
        if inner is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(inner, name)


def pool(vectors: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Return one vector per text, [rows, size]; padding on either side is ignored.

    Args:
        vectors: [rows, tokens, size].
        mask: [rows, tokens], 0 for padding. A row without any token gives zeros (mean) or its last position.
        kind: cls (the first token), mean, max or last.
    """
    mask = mask[:, -vectors.shape[1] :]  # prefix tuning prepends keys to the texts and their mask
    if kind == "mean":
        weights = mask.to(vectors.dtype).unsqueeze(-1)
        return (vectors * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if kind == "max":
        outside = (mask == 0).unsqueeze(-1)
        return vectors.masked_fill(outside, torch.finfo(vectors.dtype).min).amax(dim=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if kind == "cls":
        places = torch.where(mask != 0, positions, mask.shape[1] - 1).amin(dim=1)
    else:
        places = torch.where(mask != 0, positions, 0).amax(dim=1)
    return vectors[torch.arange(len(vectors), device=vectors.device), places]


class SentenceEncoderForSequenceClassification(PreTrainedModel):
    """Classifier with one label per text or, with problem_type multi_label_classification, any number of labels."""

    config_class = SentenceEncoderConfig
    base_model_prefix = "backbone"
    config: SentenceEncoderConfig
    supports_gradient_checkpointing = True
    head_rate_scale = 10.0
    """Learning rate factor of a new head: it starts from random weights, on vectors pretrained with this pooling."""

    # The encoder checks what it really supports when it is built.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SentenceEncoderConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.pooling not in get_args(Pooling):
            raise ValueError(f"pooling {config.pooling!r}: valid are {', '.join(get_args(Pooling))}")
        self.num_labels = config.num_labels
        encoder = config.text_config
        self.backbone = build_encoder(encoder) if backbone is None else backbone
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(encoder.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """Return logits [rows, labels] of token ids [rows, tokens] or their embeddings; with labels, the mean loss."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("either input_ids or inputs_embeds is needed")
        if attention_mask is None:
            attention_mask = given.new_ones(given.shape[:2], dtype=torch.long)
        name = "input_ids" if input_ids is not None else "inputs_embeds"
        inputs.pop("return_dict", None)
        vectors = self.backbone(**{name: given}, attention_mask=attention_mask, **inputs)[0]
        logits = self.classifier(self.dropout(pool(vectors, attention_mask, self.config.pooling)))
        return classifier_output(logits, labels, self.config.problem_type)

    @classmethod
    def from_encoder(
        cls, name: str, *, pooling: str, classifier_dropout: float | None = None, config: Any = None, **options: Any
    ) -> SentenceEncoderForSequenceClassification:
        """Return a classifier with a new head on a pretrained encoder.

        Args:
            name: a folder or Hub id that `AutoModel` opens.
            pooling: cls, mean, max or last.
            classifier_dropout: before the linear layer; default: that of the head in the encoder's config.
            config: of the encoder; default: the config of `name`.
            options: fields that describe the labels (num_labels, id2label, label2id, problem_type, pad_token_id), and
                other arguments of `from_pretrained`.
        """
        described = ("num_labels", "id2label", "label2id", "problem_type", "pad_token_id")
        head = {key: options.pop(key) for key in described if key in options}
        if config is None:
            places = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
            config = AutoConfig.from_pretrained(name, **places)
        if isinstance(config, SentenceEncoderConfig):  # a run has saved it
            config.pooling = pooling
            for key, value in head.items():
                setattr(config, key, value)
            return cls.from_pretrained(name, config=config, **options)  # type: ignore[no-any-return]
        backbone, info = encoder_class(config).from_pretrained(
            name, config=config, output_loading_info=True, **_without_pooler(config), **options
        )
        dropout = _head_dropout(config) if classifier_dropout is None else classifier_dropout
        attention = backbone.config._attn_implementation  # which the outer config sets to None
        own = SentenceEncoderConfig(text_config=backbone.config, pooling=pooling, classifier_dropout=dropout, **head)
        own._attn_implementation = attention
        for module in backbone.modules():
            module._is_hf_initialized = True  # not to be initialized again
        model = cls(own, backbone)
        made_up = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
        note_new_weights(
            model, [*(f"backbone.{key}" for key in sorted(made_up)), "classifier.weight", "classifier.bias"]
        )
        return model.eval()


def is_saved(source: Source) -> bool:
    """Whether a source is a classifier of this class, and not only an encoder. Raises CheckpointError."""
    return isinstance(open_checkpoint(AutoConfig, source, "config.json"), SentenceEncoderConfig)


def encoder_class(config: PretrainedConfig) -> Any:
    """Return the auto class that loads only an encoder: for T5 and similar models, without the decoder."""
    return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def can_pool(config: PretrainedConfig) -> bool:
    """Whether there is an encoder of this type whose token vectors can be pooled."""
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return True
    return type(config) in MODEL_MAPPING and not config.is_encoder_decoder


def build_encoder(config: PretrainedConfig) -> PreTrainedModel:
    """Return an encoder with random weights."""
    encoder: PreTrainedModel = encoder_class(config).from_config(config, **_without_pooler(config))
    return encoder


def _without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """Return the option that leaves out BERT's pooler, for classes that have it."""
    known = encoder_class(config)._model_mapping[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(known.__init__).parameters else {}


def _head_dropout(config: PretrainedConfig) -> float:
    """Return the dropout of the architecture's own classifier."""
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout_rate"):
        if (value := getattr(config, name, None)) is not None:
            return float(value)
    return 0.1


def load_encoder(
    config: PretrainedConfig, source: Source, section: ModelSection, head: dict[str, Any], pooling: str
) -> SentenceEncoderForSequenceClassification:
    """Load an encoder in float32, and add pooling and a new head.

    Args and errors are those of `sft_hf.models.loading.load_pretrained`.
    """
    refuse_adapter(source)
    apply_overrides(config, section, {})
    with checkpoint_errors(source, "weights"), quiet_transformers():
        model = SentenceEncoderForSequenceClassification.from_encoder(
            source.location(),
            pooling=pooling,
            config=config,
            revision=source.revision or "main",
            attn_implementation=section.attn_implementation,
            dtype=torch.float32,
            **head,
        )
    made_up = [name for name in model.new_weights if name.startswith("backbone.")]  # type: ignore[attr-defined,union-attr]
    if made_up:
        raise CheckpointError(
            f"{source.name}: {len(made_up)} weights of {type(model.backbone).__name__} are not in it "
            f"(first: {made_up[0].removeprefix('backbone.')}); config and weights are of different architectures"
        )
    log.info("randomly initialized weights: %s", ", ".join(model.new_weights))  # type: ignore[arg-type]
    return model


AutoConfig.register(SentenceEncoderConfig.model_type, SentenceEncoderConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    SentenceEncoderConfig, SentenceEncoderForSequenceClassification, exist_ok=True
)
AutoTokenizer.register(SentenceEncoderConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
