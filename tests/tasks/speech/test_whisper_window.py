"""A cropped Whisper computes what the whole one would on the cropped input, and stays whole itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from sft_hf.tasks.speech.whisper_window import (
    BUCKETS,
    fit_to_window,
    log_mel,
    order_of,
    split_by_frames,
    whisper_window,
    whole_seconds,
    window_buckets,
    window_seconds,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=40,
        max_target_positions=20,
        decoder_start_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def reference_encoder(encoder, mel):
    """The encoder's mathematics with the first positions of its table, by its own layers."""
    hidden = functional.gelu(encoder.conv1(mel))
    hidden = functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


@pytest.mark.parametrize("frames", [2, 24, 80])
def test_the_cropped_forward_is_the_full_mathematics_on_the_cropped_input(model, frames):
    mel = torch.randn(3, 8, frames)
    with torch.no_grad():
        expected = reference_encoder(model.model.encoder, mel)
        with whisper_window(model, frames):
            found = model.get_encoder()(mel).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-6)


def test_everything_is_as_before_afterwards(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    full = torch.randn(1, 8, 80)
    with torch.no_grad():
        expected = model.get_encoder()(full).last_hidden_state
    with whisper_window(torch.nn.ModuleList([model]), 10):  # whatever it is wrapped in
        with pytest.raises(ValueError, match="expects the mel input features to be of length 10"):
            model.get_encoder()(full)
        generated = model.generate(torch.randn(2, 8, 10), max_new_tokens=3)
    assert generated.shape[0] == 2
    assert model.config.max_source_positions == 40
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.get_encoder()(full).last_hidden_state, expected)
    with pytest.raises(KeyError), whisper_window(model, 10):
        raise KeyError
    assert model.config.max_source_positions == model.model.encoder.embed_positions.num_embeddings == 40


def test_gradients_reach_the_rows_used_and_no_others(model):
    table = model.model.encoder.embed_positions.weight.requires_grad_(True)
    with whisper_window(model, 24):
        model(input_features=torch.randn(2, 8, 24), decoder_input_ids=torch.tensor([[1], [1]])).logits.sum().backward()
    assert (table.grad[:12].abs().sum(dim=1) > 0).all()
    assert (table.grad[12:] == 0).all()


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 4000, 16_000, 47_900])
def test_the_spectrogram_is_the_extractors_cut_short(samples):
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=3)
    clip = np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)
    if samples > 2000:
        clip[: samples // 2] *= 0.001  # quiet parts lie at the floor that the loud ones set
    whole = extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    mel = log_mel(extractor, clip)
    for frames in (60, 300):
        width = min(frames, whole.shape[1])
        # The very last frames of 3 s see the clip mirrored there; silence, here.
        clean = width if samples < 47_000 else width - 2
        assert fit_to_window(mel, frames)[:, :clean] == pytest.approx(whole[:, :clean], abs=2e-5)


def test_the_window_is_a_whole_second_with_a_floor_and_a_ceiling():
    assert [window_seconds(value, 30.0) for value in (0.1, 2.0, 2.1, 7.9, 29.5, 40)] == [2, 2, 3, 8, 30, 30]
    assert window_seconds(9.0, 4.0) == 4


@pytest.mark.parametrize("seed", range(5))
def test_buckets_are_the_windows_that_pad_least(seed):
    generator = np.random.default_rng(seed)
    seconds = generator.gamma(2.0, 3.0, 60).clip(0.3, 29)
    found = window_buckets(seconds, 30.0)
    assert len(found) == BUCKETS and list(found) == sorted(set(found))
    assert found[-1] == window_seconds(seconds.max(), 30.0)

    def padded(windows):
        return sum(min(window for window in windows if window >= second) for second in seconds)

    pairs = [(a, b, found[-1]) for a in range(2, 31) for b in range(a + 1, 31) if b < found[-1]]
    assert padded(found) == min(map(padded, pairs))


def test_few_lengths_need_few_buckets():
    assert window_buckets(np.array([0.5, 1.9]), 30.0) == (2.0,)
    assert window_buckets(np.array([2.5, 1.9, 2.6]), 30.0) == (2.0, 3.0)
    assert window_buckets(np.array([40.0, 1.0]), 30.0) == (2.0, 30.0)
    assert whole_seconds(4.5) == (2.0, 3.0, 4.0, 4.5)


def test_a_batch_comes_apart_by_windows_and_together_again():
    frames = torch.tensor([6, 2, 6, 4, 2])
    features = torch.arange(30.0).view(5, 1, 6)
    batch = {"frames": frames, "input_features": features, "attention_mask": features[:, 0], "seconds": frames / 2}
    parts = split_by_frames(batch)
    assert [part["input_features"].shape for _, part in parts] == [(2, 1, 2), (1, 1, 4), (2, 1, 6)]
    together = torch.cat([part["seconds"] for _, part in parts])[order_of(parts)]
    assert torch.equal(together, frames / 2)
    for rows, part in parts:
        assert torch.equal(part["input_features"], features[rows][..., : part["input_features"].shape[-1]])
    ((rows, same),) = split_by_frames({"seconds": torch.ones(3)})
    assert rows.tolist() == [0, 1, 2] and same.keys() == {"seconds"}
