"""Tokenizers and models that do not fit each other by themselves: padding, limits, and numbers of tokens."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from small_runs import briefly
from tiers import long
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertModel,
    CamembertConfig,
    DebertaV2Config,
    GPT2Config,
    GPT2Model,
    LEDConfig,
    LlamaConfig,
    LlamaModel,
    LongformerConfig,
    MPNetConfig,
    NystromformerConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
    XLMRobertaConfig,
    XLNetConfig,
    XLNetModel,
    pipeline,
)

from sft_hf.core.errors import CheckpointError
from sft_hf.jobs.run import predict_files
from sft_hf.models.sentence_encoder import build_encoder
from sft_hf.models.token_limits import choose_max_length, fit_embeddings, fit_inputs, give_pad_token, position_table

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


def plain(config):
    return AutoModelForSequenceClassification.from_config(config)


def limit_of(wanted, config, tokenizer, build=plain, name="m"):
    return choose_max_length(wanted, config, tokenizer, position_table(config, build), name)


class Limit:
    """Stands in for a tokenizer."""

    def __init__(self, model_max_length):
        self.model_max_length = model_max_length


# --- the longest text ----------------------------------------------------------------------------------------------

POSITIONS = [
    (BertConfig(**SMALL, max_position_embeddings=48), 48),
    (RobertaConfig(**SMALL, max_position_embeddings=48, pad_token_id=1), 46),
    (RobertaConfig(**SMALL, max_position_embeddings=48, pad_token_id=7), 40),
    (XLMRobertaConfig(**SMALL, max_position_embeddings=48), 46),
    (CamembertConfig(**SMALL, max_position_embeddings=48), 46),
    (MPNetConfig(**SMALL, max_position_embeddings=48), 46),
    (LongformerConfig(**SMALL, max_position_embeddings=48, attention_window=4), 46),
    (NystromformerConfig(**SMALL, max_position_embeddings=48), 48),
    (BartConfig(**BART, max_position_embeddings=48), 48),
    (GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=48), 48),
    (LlamaConfig(**SMALL, max_position_embeddings=48), 48),
    (DebertaV2Config(**SMALL, max_position_embeddings=48, relative_attention=True), 48),
]


@pytest.mark.parametrize(("config", "limit"), POSITIONS, ids=lambda value: getattr(value, "model_type", value))
def test_no_text_is_longer_than_the_positions_of_the_model(config, limit):
    endless = Limit(10**30)
    assert limit_of(None, config, endless) == limit
    assert limit_of(256, config, endless) == limit
    assert limit_of(8, config, endless) == 8
    assert limit_of(None, config, Limit(16)) == 16
    model = plain(config).eval()
    ids = torch.full((1, limit), 10).index_fill(1, torch.tensor([limit - 1]), 2)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


def test_the_limit_of_an_encoder_alone_is_the_same():
    assert limit_of(None, POSITIONS[1][0], Limit(10**30), build_encoder) == 46
    assert limit_of(None, POSITIONS[5][0], Limit(10**30), build_encoder) == 46


@pytest.mark.parametrize(
    "config",
    [
        XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=16),
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        DebertaV2Config(**SMALL, position_biased_input=False, relative_attention=True),
    ],
    ids=["xlnet", "t5", "deberta-v2"],
)
def test_models_without_a_limit_take_what_is_wanted(config, caplog):
    with caplog.at_level(logging.INFO, logger="sft_hf"):
        assert limit_of(None, config, Limit(10**30), name="some-model") == 512
    assert "some-model" in caplog.text and "512" in caplog.text
    assert limit_of(2000, config, Limit(512)) == 2000
    assert limit_of(None, config, Limit(384)) == 384


@pytest.mark.parametrize("positions", [100, 2048])
def test_null_is_all_that_the_model_takes(positions):
    config = BertConfig(**SMALL, max_position_embeddings=positions)
    assert limit_of(None, config, Limit(10**30)) == positions


def test_a_padding_token_beyond_the_positions_is_refused():
    config = RobertaConfig(**SMALL, vocab_size=100, max_position_embeddings=40, pad_token_id=39)
    with pytest.raises(CheckpointError, match="pad"):
        position_table(config, plain)


def test_a_decoder_with_fewer_positions_than_its_encoder_counts():
    sizes = {
        **BART,
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 32,
    }
    assert position_table(LEDConfig(**sizes), build_encoder) == 32


# --- padding and numbers of tokens ---------------------------------------------------------------------------------


def stripped(checkpoint, *kept):
    """The tiny tokenizer with no special tokens but some."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for name in ("pad", "eos", "bos", "sep", "cls", "mask"):
        if name not in kept:
            setattr(tokenizer, f"{name}_token", None)
    return tokenizer


def test_padding_is_what_the_config_says_then_the_end_of_a_text_then_a_new_token(checkpoint, caplog):
    tokenizer = stripped(checkpoint, "sep", "mask")
    give_pad_token(tokenizer, BertConfig(pad_token_id=tokenizer.sep_token_id), "m")
    assert tokenizer.pad_token == "[SEP]"
    tokenizer = stripped(checkpoint, "sep", "mask")
    tokenizer.eos_token = "[SEP]"
    give_pad_token(tokenizer, GPT2Config(pad_token_id=None), "m")
    assert tokenizer.pad_token == "[SEP]"


def nothing(checkpoint, folder, model, **options):
    """A checkpoint whose tokenizer has neither a padding token nor an end of a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [word for word in AutoTokenizer.from_pretrained(checkpoint).get_vocab() if not word.startswith("[")]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(["?", *sorted(words)])}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", **options)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model(len(words) + 1).save_pretrained(folder)
    return folder


def tiny_gpt2(size):
    return GPT2Model(
        GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None
        )
    )


def tiny_llama(size):
    config = LlamaConfig(vocab_size=size, **SMALL, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return LlamaModel(config)


@pytest.mark.parametrize(
    ("model", "side"),
    [(tiny_gpt2, "left"), (tiny_llama, "right"), long((tiny_gpt2, "right")), long((tiny_llama, "left"))],
)
def test_texts_of_mixed_length_get_the_answers_that_they_get_alone(model, side, make_recipe, checkpoint, tmp_path):
    folder = nothing(checkpoint, tmp_path / "nothing", model, padding_side=side)
    result = briefly(make_recipe(model__name=str(folder), train__max_steps=6, optim__learning_rate=1e-3))
    texts = ["goal", "bank rate dollar share loss profit bank rate", "bread cheese soup", "the a ?"]
    together = list(predict_files(result.output_dir, texts, mixed_precision="no"))
    classify = pipeline("text-classification", model=str(result.output_dir / "model"), device="cpu")
    for text, answer, piped in zip(texts, together, classify(texts, batch_size=4), strict=True):
        (alone,) = predict_files(result.output_dir, [text], mixed_precision="no")
        assert answer["prediction"] == alone["prediction"] == piped["label"]
        assert answer["confidence"] == pytest.approx(alone["confidence"], abs=1e-5)
        assert answer["confidence"] == pytest.approx(piped["score"], abs=1e-5)


@pytest.mark.parametrize(("tokens", "special"), [(["[E1]", "[E2]"], True), (["ecu", "forint", "zloty"], False)])
def test_tokens_that_were_added_to_the_tokenizer_alone_get_vectors(
    tokens, special, make_recipe, checkpoint, tmp_path, caplog
):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    before = len(tokenizer)
    tokenizer.add_tokens(tokens, special_tokens=special)
    BertModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "added")
    tokenizer.save_pretrained(tmp_path / "added")
    recipe = make_recipe(model__name=str(tmp_path / "added"), train__max_steps=2)
    with caplog.at_level(logging.WARNING, logger="sft_hf"):
        result = briefly(recipe)
    assert f"{len(tokens)} new vectors" in caplog.text
    assert json.loads((result.output_dir / "model" / "config.json").read_text())["vocab_size"] == before + len(tokens)
    text = f"{tokens[0]} goal match {tokens[-1]}"
    (answer,) = predict_files(result.output_dir, [text], mixed_precision="no")
    piped = pipeline("text-classification", model=str(result.output_dir / "model"), device="cpu")(text)[0]
    assert (answer["prediction"], answer["confidence"]) == (piped["label"], pytest.approx(piped["score"], abs=1e-5))
    with pytest.raises(CheckpointError, match="resize_token_embeddings"):
        adapted = {"peft_type": "LORA"}
        briefly(make_recipe(model__name=str(tmp_path / "added"), peft=adapted, output_dir=str(tmp_path / "adapted")))


def test_numbers_without_a_token_are_no_reason_to_resize(checkpoint):
    model = BertModel.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    fit_embeddings(model, tokenizer, "m", adapted=True)
    vocabulary = tokenizer.get_vocab()
    holes = {word: index for word, index in vocabulary.items() if index % 3}
    tokenizer.get_vocab = lambda: holes
    fit_embeddings(model, tokenizer, "m", adapted=True)
    assert model.get_input_embeddings().num_embeddings == max(vocabulary.values()) + 1
    tokenizer.get_vocab = lambda: {**holes, "far": 99}
    fit_embeddings(model, tokenizer, "m", adapted=False)
    assert model.get_input_embeddings().num_embeddings == 100


@pytest.mark.parametrize("kind", ["roberta", "xlnet"])
def test_runs_of_models_with_other_positions(kind, make_recipe, checkpoint, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path / kind)
    size = len(tokenizer)
    torch.manual_seed(0)
    if kind == "roberta":
        model = RobertaModel(RobertaConfig(vocab_size=size, **SMALL, max_position_embeddings=24, pad_token_id=0))
    else:
        model = XLNetModel(XLNetConfig(vocab_size=size, d_model=16, n_layer=1, n_head=2, d_inner=16, pad_token_id=0))
    model.save_pretrained(tmp_path / kind)
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"{'goal bank ' * 40},{index % 2}\n" for index in range(20))
    )
    changes = {"data__name": str(tmp_path / "rows.csv"), "train__max_steps": 2, "task__max_length": None}
    result = briefly(make_recipe(model__name=str(tmp_path / kind), **changes))
    assert AutoTokenizer.from_pretrained(result.output_dir / "model").model_max_length == (
        23 if kind == "roberta" else 512
    )


def test_padding_goes_where_the_model_reads_a_text_rightly(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for config, table, decoder, side in [
        (BertConfig(), 512, False, "right"),
        (GPT2Config(), 1024, True, "right"),
        (LlamaConfig(), None, True, "left"),
        (XLNetConfig(), None, False, "left"),
        (T5Config(), None, False, "right"),
    ]:
        tokenizer.padding_side = "left"
        fit_inputs(tokenizer, config, table, decoder=decoder)
        assert tokenizer.padding_side == side, config.model_type


def test_a_model_with_one_type_of_token_is_given_no_types(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    fit_inputs(tokenizer, BertConfig(), 512, decoder=False)
    assert "token_type_ids" in tokenizer("goal", "bank")
    fit_inputs(tokenizer, RobertaConfig(type_vocab_size=1), 512, decoder=False)
    assert "token_type_ids" not in tokenizer("goal", "bank")
