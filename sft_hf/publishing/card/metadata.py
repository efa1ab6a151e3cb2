"""The front matter of a model card: metadata with which the Hub sorts, filters and ranks models."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.card.markdown import plain
from sft_hf.publishing.names import is_hub_id, source_name
from sft_hf.publishing.numbers import finite, metric_name


class Metric(NamedTuple):
    """The name of a metric on the Hub."""

    hub_id: str
    args: dict[str, Any] | None = None


METRICS = {
    "accuracy": Metric("accuracy"),
    "micro_f1": Metric("f1", {"average": "micro"}),
    "macro_f1": Metric("f1", {"average": "macro"}),
    "map": Metric("map"),
    "subset_accuracy": Metric("accuracy"),
    "wer": Metric("wer"),
    "cer": Metric("cer"),
    "wer_normalized": Metric("wer"),
    "cer_normalized": Metric("cer"),
    "exact_match": Metric("exact_match"),
    "mse": Metric("mse"),
    "rmse": Metric("mse", {"squared": False}),
    "mae": Metric("mae"),
    "r2": Metric("r_squared"),
    "pearson": Metric("pearsonr"),
    "spearman": Metric("spearmanr"),
}
WITH_UNIT = ("mse", "rmse", "mae")  # metrics with units, whose mean over targets is not meaningful
_ON_THE_HUB = (
    "accuracy",
    "f1",
    "wer",
    "cer",
    "exact_match",
    "mse",
    "mae",
    "r_squared",
    "pearsonr",
    "spearmanr",
)  # https://hf.co/metrics

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0
    c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0
    cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m
    deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0
    isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()
)


def metadata(record: RunRecord, *, pipeline_tag: str, title: str) -> ModelCardData:
    """Return the front matter; every value comes from the records of the run."""
    results = _eval_results(record, pipeline_tag)
    license_id, license_name = _license(getattr(record.recipe, "license", None))
    techniques = [technique.name for technique in record.recipe.techniques]
    return ModelCardData(
        pipeline_tag=pipeline_tag,
        library_name="transformers",
        license=license_id,
        license_name=license_name,
        language=language_code(record),
        base_model=base_model(record),
        datasets=[record.recipe.data.name] if data_on_hub(record) else None,
        metrics=list(dict.fromkeys(r.metric_type for r in results if r.metric_type in _ON_THE_HUB)) or None,
        tags=["sft-hf", *techniques],
        model_name=title if results else None,
        eval_results=results or None,
    )


def _license(name: str | None) -> tuple[str, str | None]:
    """Return the identifier of a license, and its name if it is not in the Hub's list."""
    if not name:
        return "unknown", None
    return (name.lower(), None) if name.lower() in _LICENSES else ("other", _slug(name))


def base_model(record: RunRecord) -> str | None:
    """Return the Hub id of the pretrained model; None for other sources. Hub models have a recorded commit."""
    name = record.recipe.model.name
    return name if is_hub_id(name) and record.metrics.get("model", {}).get("revision") else None


def data_on_hub(record: RunRecord) -> bool:
    """Whether the data are from the Hub; the commit of a stream is unknown."""
    data = record.recipe.data
    return is_hub_id(data.name) and bool(record.metrics.get("data", {}).get("revision") or data.streaming)


def language_code(record: RunRecord) -> str | None:
    """Return the ISO 639 code of the spoken language; None if the recipe does not set it."""
    language = str(getattr(record.recipe.task, "language", None) or "").strip().lower()
    if not language:
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(language, language)
    return code if re.fullmatch("[a-z]{2,3}", code) else None


def _eval_results(record: RunRecord, pipeline_tag: str) -> list[EvalResult]:
    """Return the metrics of the headline's split, the primary metric first."""
    scores, data = record.scores, record.recipe.data
    names = [record.primary, *(name for name in METRICS if name != record.primary)]
    split = data.test_split if record.split == "test" else data.validation_split
    dataset = {
        "dataset_type": data.name if data_on_hub(record) else _slug(source_name(data.name)),
        "dataset_name": plain(source_name(data.name)),
        "dataset_config": data.config_name,
        "dataset_split": plain(split or record.split),
        "dataset_revision": record.metrics.get("data", {}).get("revision"),
    }
    return [
        EvalResult(
            task_type=pipeline_tag,
            task_name=pipeline_tag.replace("-", " ").capitalize(),
            metric_type=METRICS[name].hub_id,
            metric_name=metric_name(name),
            metric_args=METRICS[name].args,
            metric_value=scores[name],
            **dataset,
        )
        for name in names
        if name in METRICS
        and finite(scores.get(name)) is not None
        and not (name in WITH_UNIT and "per_target" in scores)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:96].lower() or "local"
