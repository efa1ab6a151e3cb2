"""The shipped recipes of images and speech that load from the Hub, run on repositories laid out like the real ones.

The Hub is hub_server.py on 127.0.0.1, the models are tiny; the data sets hold their files' bytes in Parquet, as the
Hub's do. All run in one process, since HF_ENDPOINT is read when huggingface_hub is imported.
"""

from __future__ import annotations

import json

import hub_server
import pytest
from hub_data_sets import DRIVER, TEXTS, card, files_of, pictures, recordings

SMALL = ["train.num_threads=1", "train.mixed_precision=no", "train.max_steps=2", "train.per_device_train_batch_size=4"]
BEANS = ["angular_leaf_spot", "bean_rust", "healthy"]
pytestmark = pytest.mark.long  # in the quick tier: test_hub.py and test_recipes_of_today.py
RECIPES = ["image_vit_beans", "speech_whisper_small_commonvoice", "speech_wav2vec2_ctc_librispeech"]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory, image_checkpoint, multilingual_whisper_checkpoint, wav2vec2_checkpoint, make_image, speech_clip
):
    """The folder in which each recipe has left its run."""
    folder = tmp_path_factory.mktemp("hub_recipes")
    hub = hub_server.HubServer(folder / "repositories")
    hub.create("google/vit-base-patch16-224-in21k").commit(files_of(image_checkpoint))
    hub.create("openai/whisper-small").commit(files_of(multilingual_whisper_checkpoint))
    hub.create("facebook/wav2vec2-base").commit(files_of(wav2vec2_checkpoint))

    repository = hub.create("AI-Lab-Makerere/beans", "datasets")
    repository.commit({"README.md": "# A script\n", "beans.py": "raise SystemExit\n"})
    splits = {"train": (24, 0), "validation": (6, 100), "test": (6, 200)}
    content = {
        f"default/{name}/0000.parquet": pictures(make_image, *how, BEANS, "labels") for name, how in splits.items()
    }
    repository.commit(content, branch="refs/convert/parquet")

    voice = recordings(speech_clip, "sentence", str, 48_000, "MP3")
    splits = {name: f"hi/{name}/**" for name in ("train", "validation", "test", "other")}
    content = {f"hi/{name}/chunk-range-000000000-000000007/{name}-00000-of-00001.parquet": voice for name in splits}
    hub.create("fixie-ai/common_voice_17_0", "datasets").commit({**content, "README.md": card("hi", splits)})

    books = recordings(speech_clip, "text", str.upper, 16_000, "FLAC")
    splits = {name: f"clean/{name}/*.parquet" for name in ("train.100", "train.360", "validation", "test")}
    content = {f"clean/{name}/0000.parquet": books for name in splits}
    hub.create("openslr/librispeech_asr", "datasets").commit({**content, "README.md": card("clean", splits)})
    with hub:
        hub_server.run_client(hub.url, folder / "home", DRIVER, " ".join(SMALL), *RECIPES)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs_on_repositories_like_its_own(runs, name):
    metrics = json.loads((runs / name / "metrics.json").read_text())
    assert metrics["train"]["num_steps"] == 2
    assert metrics["test"]["num_examples"] == (6 if name == "image_vit_beans" else 8)
    assert len(metrics["model"]["revision"]) == len(metrics["data"]["revision"]) == 40
    rows = [json.loads(line) for line in (runs / name / "predictions.jsonl").read_text().splitlines()]
    if name == "image_vit_beans":
        assert [row["reference"] for row in rows] == ["angular_leaf_spot", "bean_rust", "healthy"] * 2
    else:
        assert [row["reference"].lower() for row in rows] == TEXTS


def test_the_models_are_what_the_recipes_say(runs):
    config = {name: json.loads((runs / name / "model" / "config.json").read_text()) for name in RECIPES}
    assert config["image_vit_beans"]["id2label"] == {"0": "angular_leaf_spot", "1": "bean_rust", "2": "healthy"}
    spoken = runs / "speech_whisper_small_commonvoice" / "model"
    generation = json.loads((spoken / "generation_config.json").read_text())
    assert (generation["language"], generation["task"], generation["is_multilingual"]) == ("hindi", "transcribe", True)
    vocabulary = json.loads((runs / "speech_wav2vec2_ctc_librispeech" / "model" / "vocab.json").read_text())
    assert set("ONETWHR") <= set(vocabulary) and "o" not in vocabulary
