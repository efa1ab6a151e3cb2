"""The shipped recipes for recent models, which need the Hub: run on tiny models of the same architectures.

As test_hub_recipes.py does it: a Hub on 127.0.0.1, data sets with the columns and splits of the real ones.
"""

from __future__ import annotations

import json

import hub_server
import pytest
from hub_data_sets import DRIVER, TEXTS, card, files_of, parquet, pictures, recordings
from modern_checkpoints import write_modernbert, write_parakeet, write_qwen3, write_siglip2
from safetensors.torch import load_file
from tiers import quick
from tiny_data import FILLER, TOPICS, make_rows

from sft_hf.core.recipe.recipe import load_recipe

SMALL = [
    *("train.num_threads=1", "train.mixed_precision=no", "train.max_steps=2", "train.per_device_train_batch_size=4"),
    *("train.gradient_accumulation_steps=1", "model.quantization=null", "data.validation_fraction=0.1"),
]
MODELS = {
    "text_modernbert_banking77": "ModernBertForSequenceClassification",
    "text_qwen3_qlora_banking77": "Qwen3ForSequenceClassification",
    "image_siglip2_lora_food101": "SiglipForImageClassification",
    "speech_whisper_turbo_lora_commonvoice": "WhisperForConditionalGeneration",
    "speech_parakeet_ctc_librispeech": "ParakeetForCTC",
}


QUICK = ["speech_parakeet_ctc_librispeech"]


def intents(count: int, seed: int) -> bytes:
    """Rows of Banking77's columns."""
    from datasets import Features, Value

    rows, names = make_rows(count, seed), sorted(TOPICS)
    columns = {
        "text": [row["text"] for row in rows],
        "label": [names.index(row["label"]) for row in rows],
        "label_text": [row["label"] for row in rows],
    }
    return parquet(columns, Features(text=Value("string"), label=Value("int64"), label_text=Value("string")))


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory, multilingual_whisper_checkpoint, make_image, speech_clip):
    """The folder in which each recipe that the selected tests look at has left its run."""
    folder = tmp_path_factory.mktemp("recipes_of_today")
    selected = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["name"] for item in selected if hasattr(item, "callspec")}
    hub = hub_server.HubServer(folder / "repositories")
    words = [*FILLER, *(word for topic in TOPICS.values() for word in topic)]
    made = {
        "answerdotai/ModernBERT-base": write_modernbert(folder / "modernbert", words),
        "Qwen/Qwen3-0.6B": write_qwen3(folder / "qwen3", words),
        "google/siglip2-base-patch16-224": write_siglip2(folder / "siglip2"),
        "openai/whisper-large-v3-turbo": multilingual_whisper_checkpoint,
        "nvidia/parakeet-ctc-1.1b": write_parakeet(folder / "parakeet"),
    }
    for name, checkpoint in made.items():
        hub.create(name).commit(files_of(checkpoint))
    files = {f"data/{split}.parquet": intents(*how) for split, how in {"train": (40, 1), "test": (9, 2)}.items()}
    hub.create("mteb/banking77", "datasets").commit(files)
    dishes, splits = ["apple_pie", "ramen", "waffles"], {"train": (30, 0), "validation": (6, 100)}
    files = {
        f"data/{split}-00000-of-00001.parquet": pictures(make_image, *how, dishes, "label")
        for split, how in splits.items()
    }
    hub.create("ethz/food101", "datasets").commit(files)
    voice = recordings(speech_clip, "sentence", str, 48_000, "MP3")
    paths = {name: f"hi/{name}.parquet" for name in ("train", "validation", "test")}
    repository = hub.create("fixie-ai/common_voice_17_0", "datasets")
    repository.commit({**dict.fromkeys(paths.values(), voice), "README.md": card("hi", paths)})
    books = recordings(speech_clip, "text", str.upper, 16_000, "FLAC")
    paths = {name: f"clean/{name}.parquet" for name in ("train.100", "validation", "test")}
    repository = hub.create("openslr/librispeech_asr", "datasets")
    repository.commit({**dict.fromkeys(paths.values(), books), "README.md": card("clean", paths)})
    chosen = [name for name in MODELS if name in wanted]
    with hub:
        hub_server.run_client(hub.url, folder / "home", DRIVER, " ".join(SMALL), *chosen)
    return folder


@pytest.mark.parametrize("name", quick(QUICK, MODELS))
def test_the_recipe_runs_on_its_architecture(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    config = json.loads((runs / name / "model" / "config.json").read_text())
    assert config["architectures"] == [MODELS[name]]
    assert metrics["train"]["num_steps"] == 2 and metrics["model"]["served_by"] == "hub"
    assert metrics["test"]["num_examples"] == {"text": 9, "image": 6, "speech": 8}[name.partition("_")[0]]
    facts, recipe = metrics["model"], load_recipe(name)
    assert facts["name"] == recipe.model.name and len(facts["revision"]) == 40
    assert ("peft" in facts) == bool(recipe.peft) == (name != "text_modernbert_banking77")
    card = (runs / name / "model" / "README.md").read_text()
    assert f"base_model: {recipe.model.name}" in card and f"licence is `{recipe.model.license}`" in card


@pytest.mark.long
def test_the_decoder_is_left_out_of_its_adapter(runs):
    run = runs / "text_qwen3_qlora_banking77"
    assert {path.name for path in (run / "model").glob("*.safetensors")} == {"adapter_model.safetensors"}
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert {name.rpartition(".")[2] for name in adapter["target_modules"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_word_pieces_are_read_back_as_words(runs):
    run = runs / "speech_parakeet_ctc_librispeech"
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["reference"].lower() for row in rows] == TEXTS
    assert not any("\u2581" in row["prediction"] for row in rows)


@pytest.mark.long
def test_the_image_encoder_is_the_checkpoints_own(runs):
    """Its names differ from those of the model for pictures and texts that the checkpoint is of."""
    before, after = (
        {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "patch_embedding" in name}
        for folder in (runs / "siglip2", runs / "image_siglip2_lora_food101" / "model")
    )
    assert next(iter(before.values())).equal(next(iter(after.values())))
