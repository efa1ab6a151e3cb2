"""A recipe: validated sections for the model, the data and the settings of a run, read from YAML.

The sections are in `sft_hf.core.recipe.sections`. A task's own settings are in its folder (see
`sft_hf.core.recipe.registry`), and are validated there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from sft_hf.core.errors import RecipeError, did_you_mean
from sft_hf.core.recipe.component_settings import TaskSettings, TechniqueSettings
from sft_hf.core.recipe.lookup import find_recipe
from sft_hf.core.recipe.problems import about_settings, first_problem, section_class
from sft_hf.core.recipe.registry import component_names, load_settings
from sft_hf.core.recipe.sections import (
    MEMORY,
    CheckpointSection,
    DataSection,
    EvalSection,
    ModelSection,
    OptimSection,
    Section,
    TrainSection,
)
from sft_hf.core.recipe.yaml_files import check_plain, find_beside, flatten, parse_value, read_yaml, write_yaml
from sft_hf.core.redaction import redact


def _validate_task(value: Any) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        name = value.get("name")
        if not isinstance(name, str):
            raise ValueError(f"task.name is missing; {did_you_mean('', component_names('tasks'))}")
        try:
            return load_settings("tasks", name).model_validate(value)
        except RecipeError as error:
            raise ValueError(str(error)) from None
    return value


def _validate_techniques(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = []
    for place, item in enumerate(value):
        item = {"name": item} if isinstance(item, str) else item
        if not isinstance(item, dict):
            found.append(item)
            continue
        name = item.get("name")
        if not isinstance(name, str):
            raise ValueError(f"number {place + 1} has no name; {did_you_mean('', component_names('techniques'))}")
        try:
            found.append(load_settings("techniques", name).model_validate(item))
        except RecipeError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            raise ValueError(about_settings(name, error)) from None
    names = [settings.name for settings in found if isinstance(settings, TechniqueSettings)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is listed twice")
    return found


def _check_peft(value: dict[str, Any]) -> dict[str, Any]:
    """Check what can be checked without importing PEFT, which takes seconds; see `sft_hf.models.adapters.settings`."""
    if value and not isinstance(value.get("peft_type"), str):
        raise ValueError("peft_type is missing; give one of PEFT's names: LORA, IA3, PREFIX_TUNING, ...")
    return value


NON_IDENTITY_KEYS = frozenset(
    "output_dir row_cache_gb report_to push_to_hub hub_model_id hub_private_repo hub_revision license".split()
)
"""Keys that do not affect the results: a run may be resumed with different values."""


class Recipe(Section):
    """A complete recipe: every setting of a run."""

    task: Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_validate_task)] = Field(
        description="The application scenario and its settings."
    )
    model: ModelSection = Field(description="The pretrained model.")
    data: DataSection = Field(description="The labeled data.")
    train: TrainSection = Field(default_factory=TrainSection, description="The training loop.")
    optim: OptimSection = Field(
        default_factory=OptimSection, description="The optimizer and its learning-rate schedule."
    )
    eval: EvalSection = Field(default_factory=EvalSection, description="Evaluation and model selection.")
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection, description="Checkpoints.")
    peft: Annotated[dict[str, Any], AfterValidator(_check_peft)] = Field(
        default_factory=dict,
        description="Parameter-efficient fine-tuning: peft_type (LORA, IA3, PREFIX_TUNING, ...) and the fields of "
        "PEFT's config class by their own names; `use_dora: true` for DoRA. output: contents of "
        "model/: merged (default) or adapter. adapter/ always contains the adapter. Empty: train the whole model.",
        examples=[{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}],
    )
    techniques: Annotated[list[SerializeAsAny[TechniqueSettings]], BeforeValidator(_validate_techniques)] = Field(
        default_factory=list,
        description="Techniques that modify training, e.g. [{name: label_smoothing, smoothing: 0.1}]; "
        "`sft-hf techniques` lists them with their settings.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of initial weights, data order and dropout.")
    row_cache_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        10.0,
        description="Limit in GB of the caches of tokens and of speech features in ~/.cache/sft-hf; 0: no caches.",
    )
    output_dir: str | None = Field(None, description="The run folder; default: runs/NAME.")
    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(
        default_factory=list, description="Experiment trackers to log to."
    )
    push_to_hub: bool = Field(False, description="Push the finished run to the Hub; checked before training.")
    hub_model_id: str | None = Field(
        None,
        description="The repository (owner/name, or name alone for your own account); default: the run folder's name.",
    )
    hub_private_repo: bool = Field(True, description="Create the repository as private.")
    hub_revision: str | None = Field(None, description="The branch to push to, created if missing; default: main.")
    license: str | None = Field(
        None, description="License of the resulting model, for its model card: a Hub identifier such as apache-2.0."
    )

    @model_validator(mode="after")
    def _techniques_fit(self) -> Recipe:
        for settings in self.techniques:
            try:
                settings.check_recipe(self)
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _quantization_fits(self) -> Recipe:
        if self.model.quantization is not None and not self.peft:
            raise ValueError("model.quantization: quantized weights cannot be trained; add a peft section, e.g. LORA")
        return self

    @model_validator(mode="after")
    def _pooling_fits(self) -> Recipe:
        if self.model.pooling != "auto" and self.task.modality != "text":
            raise ValueError(f"model.pooling is for texts; {self.task.name} has no token vectors to pool")
        return self

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that loads back into an equal recipe."""
        return write_yaml(self.model_dump(mode="json"))


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with each `dotted.key=VALUE` set; VALUE is plain text if the key takes only text, else YAML.

    A new `model.name` or `data.name` drops the file's revision, hash, mirror and license, which belong to the old name.
    Raises RecipeError for a malformed override.
    """
    result = dict(data)
    for section in ("model", "data"):
        if any(override.partition("=")[0].strip() == f"{section}.name" for override in overrides):
            result[section] = _without_pins(result.get(section))
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise RecipeError(f"{override[:80]!r}: an override is KEY=VALUE, e.g. optim.learning_rate=3e-5")
        key = key[:100]
        value = _override_value(text, f"override {key}", parts, data)
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


def _without_pins(section: Any) -> Any:
    """Drop the keys that belong to one particular model or data set."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in ("revision", "sha256", "mirror", "license")}


def _override_value(text: str, where: str, parts: Sequence[str], data: dict[str, Any]) -> Any:
    """Return the value of an override. As YAML, the column name `#1 String` is a comment, and `001` a number."""
    kinds = _kinds(parts, data)
    plain = text.strip()
    texts = list[str] in kinds or dict[str, str] in kinds
    if str in kinds and not plain and (text or parts[-1] == "quote_char"):  # a tab or blank; or no quotes at all
        return text
    if (
        str not in kinds
        or not plain
        or (plain in ("null", "~") and type(None) in kinds)
        or (texts and plain[0] in "[{")
    ):
        return parse_value(text, where, texts=texts and plain not in ("", "null", "~"))
    if plain[0] in "'\"":
        try:
            value = parse_value(text, where)
            return value if isinstance(value, str) else plain
        except RecipeError:
            pass
    return plain


def _kinds(parts: Sequence[str], data: dict[str, Any]) -> set[Any]:
    """Return the types that a key of a recipe accepts; empty for an unknown key."""
    try:
        section = section_class(parts[:-1], data, Recipe)
    except (RecipeError, KeyError, TypeError):
        return set()
    field = section.model_fields.get(parts[-1]) if section else None
    if field is None:
        return set()
    annotation = field.annotation
    return set(get_args(annotation)) if isinstance(annotation, UnionType) else {annotation}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path, with `KEY=VALUE` overrides applied before validation.

    Local paths in it are made absolute, and `output_dir` is filled in, so that the saved recipe works in any folder. A
    name in the file that starts with `./` and does not exist in the working folder is looked for next to
    the recipe, so that a recipe can come with its data. Raises RecipeError naming the file and the dotted key.
    """
    path = find_recipe(name)
    data = find_beside(read_yaml(path), path.parent)
    refuse_trust(data, str(path), allowed=any(override.startswith(f"{TRUST}=") for override in overrides))
    recipe = validate_recipe(apply_overrides(data, overrides), str(path), overrides)
    settle(recipe, str(path), f"runs/{path.stem}")
    return recipe


def settle(recipe: Recipe, where: str, output_dir: str) -> None:
    """Make local paths absolute, and fill in `output_dir` if the recipe has none, in place.

    Raises RecipeError for a token or password: a recipe is saved, and published with the model.
    """
    for key, value in flatten(recipe.model_dump(mode="json")).items():
        if isinstance(value, str) and redact(value) != value:
            raise RecipeError(
                f"{where}: {key}: holds a token or password; use an environment variable, or `hf auth login`"
            )
    for section in (recipe.model,) if recipe.data.name == MEMORY else (recipe.model, recipe.data):
        local = os.path.expanduser(section.name)
        if not section.name.startswith("pypi://") and os.path.exists(local):
            section.name = os.path.realpath(local)
    recipe.output_dir = os.path.realpath(os.path.expanduser(recipe.output_dir or output_dir))


TRUST = "model.trust_remote_code"


def refuse_trust(data: dict[str, Any], where: str, *, allowed: bool) -> None:
    """Raise RecipeError for a file that sets `model.trust_remote_code`: recipes are shared, and rarely read first."""
    model = data.get("model")
    if isinstance(model, dict) and model.get("trust_remote_code") not in (None, False) and not allowed:
        raise RecipeError(
            f"{where}: {TRUST}: a recipe file cannot allow code that comes with a model; once you have read that code, "
            f"allow it on the command line with {TRUST}=true"
        )


def validate_recipe(data: dict[str, Any], where: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Return `data` (from file `where` and overrides) as a Recipe. Raises RecipeError for the first invalid key."""
    try:
        check_plain(data)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        key, text = first_problem(error, data, Recipe)
        if any(f"{key}.".startswith(override.partition("=")[0].strip() + ".") for override in overrides):
            where = "command line"
        raise RecipeError(f"{where}: {text}") from None


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, including the settings of all tasks."""
    schema = Recipe.model_json_schema()
    tasks = []
    for name in component_names("tasks"):
        task = load_settings("tasks", name).model_json_schema()
        schema.setdefault("$defs", {}).update(task.pop("$defs", {}))
        task["properties"]["name"] = {"const": name}
        tasks.append(task)
    schema["properties"]["task"] = {
        "oneOf": tasks,
        "description": schema["properties"]["task"]["description"],
    }
    schema["$defs"].pop("TaskSettings", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
