"""Mixup: inputs and labels by hand, for every task; partners do not depend on how a step is cut."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import briefly
from tiers import long
from torch.nn import functional
from transformers import GPT2Config, GPT2Model

from sft_hf.core.errors import RecipeError
from sft_hf.engine import step
from sft_hf.tasks.text.word_embeddings import word_tokenizer
from sft_hf.techniques.base import LossParts, TrainBatch
from sft_hf.techniques.regularization.mixup import Mixup, _masks, mixed
from sft_hf.techniques.regularization.settings import MixupSettings


def test_it_is_a_weighted_mean():
    first, second = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    found = mixed(first, second, torch.tensor([1.0, 0.25, 0.6]))
    assert torch.equal(found[0], first[0])
    torch.testing.assert_close(found[1], 0.25 * first[1] + 0.75 * second[1])


class Vectors:
    """A task of which only what mixup asks is there."""

    def as_embeddings(self, model, batch):
        return "x", batch

    def mixed_labels(self, first, second, weights):
        one, other = functional.one_hot(first, 3).float(), functional.one_hot(second, 3).float()
        return weights[:, None] * one + (1 - weights[:, None]) * other


class Transcripts(Vectors):
    def mixed_labels(self, first, second, weights):
        return None


def batches():
    torch.manual_seed(0)
    own = {"x": torch.randn(6, 4), "labels": torch.arange(6) % 3, "attention_mask": torch.eye(6)}
    other = {"x": torch.randn(6, 4), "labels": torch.arange(1, 7) % 3, "attention_mask": torch.ones(6, 6)}
    return own, other


def seen_by(task, **settings):
    """What the loss inside is given, and what comes out."""
    own, other = batches()
    given = []

    def inside(model, batch):
        given.append(batch.inputs)
        return torch.arange(6.0) + 10 * len(given)

    technique = Mixup(MixupSettings(**settings), None)
    loss = technique.wrap_loss(inside, LossParts(task, None))
    result = loss(None, TrainBatch(own, other, tuple(range(6))))
    return given, result, technique._weights(TrainBatch(own, other, tuple(range(6))))


def test_labels_are_mixed_like_the_inputs():
    (given,), _, weights = seen_by(Vectors(), alpha=1.0)
    own, other = batches()
    assert ((weights >= 0.5) & (weights < 1)).all()
    for row, weight in enumerate(weights.tolist()):
        torch.testing.assert_close(given["x"][row], weight * own["x"][row] + (1 - weight) * other["x"][row])
        wanted = torch.zeros(3)
        wanted[own["labels"][row]] += weight
        wanted[other["labels"][row]] += 1 - weight
        torch.testing.assert_close(given["labels"][row], wanted)
    assert (given["attention_mask"] == 1).all()


def test_a_row_that_is_not_mixed_sees_nothing_of_its_partner():
    (given,), _, weights = seen_by(Vectors(), probability=0.0)
    assert torch.equal(weights, torch.ones(6))
    assert torch.equal(given["x"], batches()[0]["x"]) and torch.equal(given["attention_mask"], torch.eye(6))


def test_losses_of_transcripts_are_mixed():
    given, result, weights = seen_by(Transcripts(), alpha=1.0)
    assert [inputs["labels"].tolist() for inputs in given] == [
        batches()[0]["labels"].tolist(),
        batches()[1]["labels"].tolist(),
    ]
    assert torch.equal(given[0]["x"], given[1]["x"])
    torch.testing.assert_close(result, weights * (torch.arange(6.0) + 10) + (1 - weights) * (torch.arange(6.0) + 20))


def test_behind_the_end_of_a_text_stand_its_partners_token_types():
    own = {"token_type_ids": torch.tensor([[0, 1, 0, 0]] * 2), "attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)}
    other = {"token_type_ids": torch.tensor([[0, 0, 1, 0]] * 2), "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2)}
    masks = _masks(own, other, torch.tensor([0.7, 1.0]))
    assert masks["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert masks["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


@pytest.fixture
def decoder(tmp_path, checkpoint):
    """A function: the side of padding -> a GPT-2 of one layer that classifies the words of `checkpoint`."""

    def make(side):
        torch.manual_seed(0)
        words = (checkpoint / "vocab.txt").read_text().split()
        options = {"n_embd": 32, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        GPT2Model(GPT2Config(vocab_size=len(words) + 2, n_positions=64, **options)).save_pretrained(tmp_path / side)
        word_tokenizer(words).save_pretrained(tmp_path / side)
        config = tmp_path / side / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "padding_side": side}))
        return str(tmp_path / side)

    return make


@pytest.mark.parametrize("name", ["mixup", long("adversarial")])
def test_decoders_must_see_where_a_text_ends(name, decoder, make_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"'gpt2' cannot find the end of a text .*; model\.pooling=last"):
        briefly(make_recipe(model__name=decoder("right"), techniques=[name]))
    neutral = {"mixup": {"probability": 0.0}, "adversarial": {"weight": 0.0}}[name]
    losses = [
        briefly(
            make_recipe(
                model__name=decoder("left"),
                model__pooling="last",
                techniques=techniques,
                train__max_steps=1,
                eval__baseline="none",
                output_dir=str(tmp_path / str(len(techniques))),
            )
        ).metrics["train"]["final_loss"]
        for techniques in ([], [{"name": name, **neutral}])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_models_that_take_token_ids_alone_are_refused(make_recipe, checkpoint, tmp_path):
    from tokenizers.processors import TemplateProcessing
    from transformers import T5Config, T5ForSequenceClassification

    words = (checkpoint / "vocab.txt").read_text().split()
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": len(words) + 2}
    T5ForSequenceClassification(T5Config(**size, decoder_start_token_id=0)).save_pretrained(tmp_path / "t5")
    tokenizer = word_tokenizer(words)
    end = TemplateProcessing(
        single="$A [UNK]", special_tokens=[("[UNK]", 1)]
    )  # T5's classifier reads the end of a text
    tokenizer.backend_tokenizer.post_processor = end
    tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(RecipeError, match="'t5' does not accept inputs_embeds"):
        briefly(make_recipe(model__name=str(tmp_path / "t5"), techniques=["mixup"]))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_are_drawn_from_the_beta_distribution(alpha):
    rows = 4000
    batch = TrainBatch({"labels": torch.zeros(rows)}, None, tuple(range(rows)))
    weights = Mixup(MixupSettings(alpha=alpha), None)._weights(batch)
    drawn = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    assert float(weights.mean()) == pytest.approx(np.maximum(drawn, 1 - drawn).mean(), abs=0.01)


def test_how_a_step_is_cut_changes_nothing(make_image_recipe, tmp_path, monkeypatch):
    partners = []
    real = step.train_step
    monkeypatch.setattr(
        "sft_hf.engine.loop.train_step",
        lambda training, examples, window, state: (
            partners.append(training.techniques.partners(window.rows(), state.step)),
            real(training, examples, window, state),
        )[1],
    )
    weights = []
    for size, passes in ((8, 1), (2, 4)):
        recipe = make_image_recipe(
            techniques=["mixup"],
            train__max_steps=3,
            train__per_device_train_batch_size=size,
            train__gradient_accumulation_steps=passes,
            optim__name="sgd",
            output_dir=str(tmp_path / str(size)),
        )
        weights.append(load_file(briefly(recipe).output_dir / "model" / "model.safetensors"))
    assert partners[:3] == partners[3:]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)
    assert all(sorted(found.values()) == sorted(found) for found in partners)  # a permutation
