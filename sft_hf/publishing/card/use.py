"""The lines of Python that open a published model with plain Transformers."""

from __future__ import annotations

from pathlib import PurePath

from sft_hf.publishing.card.adapter import adapter_facts, open_adapter
from sft_hf.publishing.card.markdown import fenced, python_text
from sft_hf.publishing.installing import install_line
from sft_hf.publishing.numbers import finite
from sft_hf.run_record import RunRecord

_WORD_VECTOR_FILES = (".txt", ".vec", ".bin", ".gz")


def use(record: RunRecord, pipeline_tag: str, repo_id: str | None) -> str:
    """Return a block of Python that prints the model's answer to one input; for an adapter, how that is opened too."""
    if adapter_facts(record).get("output") == "adapter":
        return open_adapter(record, _local_name(record) if repo_id is None else repo_id)
    answer = _use_model(record, pipeline_tag, repo_id)
    if not adapter_facts(record):
        return answer
    if repo_id is None:
        alone = f"beside this folder. {open_adapter(record, f'{_local_run(record)}/adapter')}"
    else:
        alone = f"of this repository. {open_adapter(record, repo_id, subfolder='adapter')}"
    return f"{answer}\n\nThe adapter that is merged into it lies alone in `adapter/` {alone}"


def _use_model(record: RunRecord, pipeline_tag: str, repo_id: str | None) -> str:
    lines = ["from transformers import pipeline", ""]
    before = ""
    if _on_word_vectors(record):
        lines.insert(0, f"import sft_hf.models.word_embeddings  # {install_line()}")
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
    threshold = finite(record.scores.get("threshold"))
    if record.primary != "micro_f1":
        first = "[0]" if pipeline_tag == "image-classification" or given.startswith("[") else ""
        return [f'classify = pipeline("{pipeline_tag}", model={model})', f"print(classify({given}){first})"]
    # All labels with their scores; the threshold is the one that validation chose.
    every, first = (
        ("None", "[0]") if pipeline_tag == "text-classification" else ("classify.model.config.num_labels", "")
    )
    return [
        f'classify = pipeline("{pipeline_tag}", model={model})',
        f"scores = classify({given}, top_k={every}){first}",
        f'print([row["label"] for row in scores if row["score"] >= {0.5 if threshold is None else threshold}])',
    ]


def _on_word_vectors(record: RunRecord) -> bool:
    """Whether the model is of the kind that Transformers does not know by itself."""
    if kind := record.metrics.get("model", {}).get("type"):
        return bool(kind == "word_embeddings")
    name = record.recipe.model.name
    settings = getattr(record.recipe.task, "embeddings", None)
    return record.recipe.task.name == "text_classification" and (
        settings is not None or name.lower().endswith(_WORD_VECTOR_FILES)
    )


def _local_name(record: RunRecord) -> str:
    return f"{_local_run(record)}/model"


def _local_run(record: RunRecord) -> str:
    """The run's folder as seen from where runs are started: runs/NAME."""
    runs = PurePath(record.recipe.output_dir or "runs/run").parent.name == "runs"
    return f"{'runs/' if runs else ''}{record.name}"
