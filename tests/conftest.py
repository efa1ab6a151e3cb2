"""Tiny random models and data made on the spot: no network, no GPU, no real checkpoint."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_data
from tiny_data import FILLER, SPOKEN, TOPICS, make_rows, make_speech, spoken_texts, write_csv, write_speech_folder

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would need the Hub fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Any:
    """Commands set up the package's log for their process, which here goes on."""
    log = logging.getLogger("sft_hf")
    before = log.level, log.propagate, list(log.handlers)
    yield
    log.setLevel(before[0])
    log.propagate, log.handlers = before[1], before[2]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("SFT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of `datasets` for one test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and 32 dimensions, without a classifier's head, that knows the words of tiny_data.py."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("checkpoint")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *FILLER,
        *(word for topic in TOPICS.values() for word in topic),
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.1,  # at this size the usual 0.02 takes many steps to get anywhere
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv with 90 rows and test.csv with 30; no validation."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder / "train.csv", make_rows(90, seed=1))
    write_csv(folder / "test.csv", make_rows(30, seed=2))
    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """300 of 1 to 60 words of the tiny checkpoint, and one that it does not know: some are cut."""
    import numpy as np

    generator = np.random.default_rng(0)
    words = "goal match team bank rate dollar bread cheese soup the a of and to unheard".split()
    return [" ".join(generator.choice(words, int(generator.integers(1, 61)))) for _ in range(300)]


@pytest.fixture
def make_recipe(checkpoint: Path, data_folder: Path, tmp_path: Path) -> Any:
    """Return a function that makes a recipe on the tiny model and data, with keys changed: see `tiny_recipe`."""
    from tiny_recipes import tiny_recipe

    return partial(tiny_recipe, "text_classification", checkpoint, data_folder, tmp_path / "run")


@pytest.fixture(scope="session")
def make_image() -> Any:
    """The function that makes a picture of a class."""
    return tiny_data.make_image


@pytest.fixture(scope="session")
def write_image_folder() -> Any:
    """The function that writes a folder of pictures."""
    return tiny_data.write_image_folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<colour>/*.jpg with 30 images and test/<colour>/*.png with 12; no validation."""
    folder = tmp_path_factory.mktemp("images")
    tiny_data.write_image_folder(folder / "train", 10, seed=1)
    tiny_data.write_image_folder(folder / "test", 4, seed=2, suffix=".png")
    return folder


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of two layers and 32 dimensions for images of 16 x 16, without a classifier's head."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.1,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cnn_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny timm CNN with batch norm."""
    import torch
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    folder = tmp_path_factory.mktemp("timm")
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = TimmWrapperConfig(
        architecture="test_efficientnet", num_labels=5, pretrained_cfg={**shape, "interpolation": "bilinear"}
    )
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_image_recipe(image_checkpoint: Path, image_folder: Path, tmp_path: Path) -> Any:
    """Like `make_recipe`, on the tiny ViT and the coloured images."""
    from tiny_recipes import tiny_recipe

    return partial(tiny_recipe, "image_classification", image_checkpoint, image_folder, tmp_path / "run")


# --- speech ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, validation and test, each the same 8 recordings: what is learned by heart can be told from what is not."""
    folder = tmp_path_factory.mktemp("speech")
    for split in ("train", "validation", "test"):
        write_speech_folder(folder / split, spoken_texts(8, seed=1))
    return folder


@pytest.fixture(scope="session")
def speech_clip() -> Any:
    """The function that makes a recording of a text."""
    return make_speech


def write_whisper(folder: Path, languages: list[str]) -> Path:
    """A Whisper of one layer and 32 dimensions that hears 4 s, and writes bytes and the words of tiny_data.py."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    from transformers import WhisperTokenizer as Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in languages)]
    special += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    symbols = dict.fromkeys(bytes_to_unicode().values())
    merges: dict[tuple[str, str], None] = {}
    for word in SPOKEN:
        for end in range(1, len(word) + 1):
            merges[("\u0120" + word[: end - 1], word[end - 1])] = None
            symbols["\u0120" + word[:end]] = None
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, special[0]])}
    tokenizer = Tokenizer(vocab=vocabulary, merges=list(merges), pad_token=special[0])
    tokenizer.add_tokens(special[1:], special_tokens=True)
    tokenizer.add_tokens([f"<|{index * 0.02:.2f}|>" for index in range(201)])
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=40, chunk_length=4).save_pretrained(folder)
    start, end = (tokenizer.convert_tokens_to_ids(word) for word in (special[1], special[0]))
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=40,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=200,
        max_target_positions=64,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        init_std=0.1,
        dropout=0.0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        max_length=64,
        is_multilingual=len(languages) > 1,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids(special[-1]),
        # what a fine-tuning has to be able to write must not stay suppressed
        suppress_tokens=[vocabulary["\u0120six"], vocabulary["#"]],
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Whisper above, English only."""
    return write_whisper(tmp_path_factory.mktemp("whisper"), ["en"])


@pytest.fixture(scope="session")
def multilingual_whisper_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Whisper above with all languages, in the order that Transformers counts them."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return write_whisper(tmp_path_factory.mktemp("whisper_multilingual"), list(LANGUAGES))


@pytest.fixture(scope="session")
def wav2vec2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wav2Vec2 of one layer and 32 dimensions without a vocabulary, a frame every 10 ms."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("wav2vec2")
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        initializer_range=0.1,
        mask_time_prob=0.0,
        mask_feature_length=8,
    )
    torch.manual_seed(0)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture
def make_speech_recipe(whisper_checkpoint: Path, speech_folder: Path, tmp_path: Path) -> Any:
    """Like `make_recipe`, on the tiny Whisper and the recordings of chords."""
    from tiny_recipes import tiny_recipe

    return partial(tiny_recipe, "speech_recognition", whisper_checkpoint, speech_folder, tmp_path / "run")


# --- commands in processes of their own ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def commands_module() -> Any:
    """tests/commands.py."""
    import commands

    return commands


@pytest.fixture(scope="session")
def commands(commands_module: Any) -> Any:
    """Starts `sft-hf` in processes that can be killed."""
    return commands_module.shared()


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data_folder: Path) -> Path:
    """A recipe of 22 steps on the tiny model, with a save every 4, an evaluation every 5, and dropout."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        f"""
task: {{name: text_classification, max_length: 32}}
model: {{name: {checkpoint}}}
data: {{name: {data_folder}}}
train: {{num_train_epochs: 2, per_device_train_batch_size: 8, mixed_precision: 'no', num_threads: 1, logging_steps: 3}}
optim: {{learning_rate: 1e-2}}
eval: {{eval_steps: 5}}
checkpoint: {{save_steps: 4}}
"""
    )
    return path
