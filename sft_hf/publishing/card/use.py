"""Python code that loads a published model with plain Transformers."""

from __future__ import annotations

from pathlib import PurePath

from sft_hf.core.run.record import RunRecord
from sft_hf.publishing.card.adapter import adapter_facts, open_adapter
from sft_hf.publishing.card.markdown import fenced, python_text
from sft_hf.publishing.installing import install_line
from sft_hf.publishing.numbers import finite
from sft_hf.publishing.regression import is_regression, target_names

_WORD_VECTOR_FILES = (".txt", ".vec", ".bin", ".gz")
_OWN_MODULES = {
    "word_embeddings": "sft_hf.tasks.text.word_embeddings",
    "sft_hf_sentence_encoder": "sft_hf.models.sentence_encoder",
}


def use(record: RunRecord, pipeline_tag: str, repo_id: str | None) -> str:
    """Return a Python block that prints the model's answer to one input; for an adapter, also how to load it."""
    if adapter_facts(record).get("output") == "adapter":
        return open_adapter(record, _local_name(record) if repo_id is None else repo_id)
    answer = _use_model(record, pipeline_tag, repo_id)
    if not adapter_facts(record):
        return answer
    if repo_id is None:
        alone = f"next to this folder. {open_adapter(record, f'{_local_run(record)}/adapter')}"
    else:
        alone = f"of this repository. {open_adapter(record, repo_id, subfolder='adapter')}"
    return f"{answer}\n\nThe adapter that is merged into it is also saved separately in `adapter/` {alone}"


def _use_model(record: RunRecord, pipeline_tag: str, repo_id: str | None) -> str:
    lines = ["from transformers import pipeline", ""]
    before = ""
    if module := _own_module(record):
        lines.insert(0, f"import {module}  # {install_line()}")
    options = ", trust_remote_code=True" if record.recipe.model.trust_remote_code else ""
    model = f"{python_text(repo_id or _local_name(record))}{options}"
    if pipeline_tag == "automatic-speech-recognition":
        lines.insert(0, "import soundfile")
        lines += [
            f'recognize = pipeline("{pipeline_tag}", model={model})',
            'samples, rate = soundfile.read("recording.wav", dtype="float32")  # one channel',
            'print(recognize({"raw": samples, "sampling_rate": rate})["text"])',
        ]
        before = "For 16 kHz recordings (or any rate, with torchaudio installed):"
    else:
        lines += _classify(record, pipeline_tag, model)
    return f"{before}\n\n{fenced(chr(10).join(lines), 'python')}".strip()


def _classify(record: RunRecord, pipeline_tag: str, model: str) -> list[str]:
    given = '"picture.jpg"'
    if pipeline_tag == "text-classification":
        given = (
            '{"text": "first text", "text_pair": "second text"}'
            if record.recipe.data.text_pair_column
            else '["a text"]'
        )
        given += ", truncation=True"
    if is_regression(record):
        return _predict(record, pipeline_tag, model, given)
    threshold = finite(record.scores.get("threshold"))
    if record.primary != "micro_f1":
        first = "[0]" if pipeline_tag == "image-classification" or given.startswith("[") else ""
        return [f'classify = pipeline("{pipeline_tag}", model={model})', f"print(classify({given}){first})"]
    # All labels with their scores; the threshold was chosen on validation.
    every, first = (
        ("None", "[0]") if pipeline_tag == "text-classification" else ("classify.model.config.num_labels", "")
    )
    return [
        f'classify = pipeline("{pipeline_tag}", model={model})',
        f"scores = classify({given}, top_k={every}){first}",
        f'print([row["label"] for row in scores if row["score"] >= {0.5 if threshold is None else threshold}])',
    ]


def _predict(record: RunRecord, pipeline_tag: str, model: str, given: str) -> list[str]:
    """Pipelines return a number as the score of the target's name."""
    lines = [f'predict = pipeline("{pipeline_tag}", model={model})']
    text, several = pipeline_tag == "text-classification", len(target_names(record)) > 1
    if several:
        every, first = ("None", "[0]") if text else ("predict.model.config.num_labels", "")
        return [
            *lines,
            f"answer = predict({given}, top_k={every}){first}  # in the units of the data",
            'print({row["label"]: row["score"] for row in answer})',
        ]
    first = "" if text and not given.startswith("[") else "[0]"
    return [*lines, f'print(predict({given}){first}["score"])  # in the units of the data']


def _own_module(record: RunRecord) -> str | None:
    """Return the module that registers the model with Transformers, if one is needed."""
    if kind := record.metrics.get("model", {}).get("type"):
        return _OWN_MODULES.get(kind)
    name = record.recipe.model.name
    settings = getattr(record.recipe.task, "embeddings", None)
    on_vectors = settings is not None or name.lower().endswith(_WORD_VECTOR_FILES)
    return _OWN_MODULES["word_embeddings"] if record.recipe.task.modality == "text" and on_vectors else None


def _local_name(record: RunRecord) -> str:
    return f"{_local_run(record)}/model"


def _local_run(record: RunRecord) -> str:
    """Return the run folder relative to the usual working directory: runs/NAME."""
    runs = PurePath(record.recipe.output_dir or "runs/run").parent.name == "runs"
    return f"{'runs/' if runs else ''}{record.name}"
