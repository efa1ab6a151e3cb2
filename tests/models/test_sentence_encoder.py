"""Sentence encoders: which pooling a checkpoint says, the classifier on it, and how it is opened again."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sentence_encoders import MODES, pooling_file, sentence_encoder
from tiers import long
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    GPT2Config,
    MPNetConfig,
    RobertaConfig,
    T5Config,
    pipeline,
)

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.sources.sources import Source, resolve
from sft_hf.jobs.finetune import finetune
from sft_hf.jobs.run import predict_files
from sft_hf.models.freezing import backbone_names, head_names
from sft_hf.models.layers import layer_depths
from sft_hf.models.pooling import checkpoint_pooling, choose_pooling
from sft_hf.models.sentence_encoder import (
    SentenceEncoderConfig,
    SentenceEncoderForSequenceClassification,
    build_encoder,
    pool,
)

CONFIGS = {
    "bert": BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16),
    "roberta": RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ),
    "mpnet": MPNetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ),
    "distilbert": DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=16),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "t5": T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2),
}


def source_of(folder: Path) -> Source:
    return resolve(str(folder))


@pytest.fixture
def encoder_folder(checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny BERT with mean pooling."""
    return sentence_encoder(checkpoint, tmp_path / "encoder")


# --- pooling -------------------------------------------------------------------------------------------------------


def reference(vectors: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """The formulas of sentence-transformers, row by row and without padding."""
    rows = []
    for row, kept in zip(vectors, mask.bool(), strict=True):
        tokens = row[kept]
        rows.append({"cls": tokens[0], "mean": tokens.mean(0), "max": tokens.max(0).values, "last": tokens[-1]}[kind])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_counts_for_nothing(kind, side):
    torch.manual_seed(0)
    vectors, lengths = torch.randn(5, 7, 4), [7, 1, 3, 6, 2]
    mask = torch.tensor([[1] * length + [0] * (7 - length) for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    torch.testing.assert_close(pool(vectors, mask, kind), reference(vectors, mask, kind))
    garbage = torch.where(mask.bool().unsqueeze(-1), vectors, torch.full_like(vectors, 1e6))
    torch.testing.assert_close(pool(garbage, mask, kind), reference(vectors, mask, kind))


@pytest.mark.parametrize("name", CONFIGS)
def test_any_encoder_is_wrapped_saved_and_opened_again(name, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS[name]
    encoder = build_encoder(config).eval()
    encoder.save_pretrained(tmp_path / "base")
    model = SentenceEncoderForSequenceClassification.from_encoder(str(tmp_path / "base"), pooling="mean", num_labels=3)
    ids = torch.randint(3, 40, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        vectors = encoder(input_ids=ids, attention_mask=mask)[0]
        expected = model.classifier(reference(vectors, mask, "mean"))
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
        vectors_of_tokens = model.get_input_embeddings()(ids)
        by_vectors = model(inputs_embeds=vectors_of_tokens, attention_mask=mask).logits
        torch.testing.assert_close(by_vectors, expected)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is SentenceEncoderForSequenceClassification and again.config.hidden_size == 16
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids, attention_mask=mask).logits, expected)
    written = (tmp_path / "saved" / "config.json").read_text()
    assert str(tmp_path) not in written and "safetensors" in "".join(p.name for p in (tmp_path / "saved").iterdir())
    assert head_names(model) == ["classifier.weight", "classifier.bias"] == list(model.new_weights)
    assert len(backbone_names(model)) == len(list(encoder.parameters()))
    assert sorted(set(layer_depths(model).values())) == [0, 1, 2, 3]


def test_losses_follow_the_kind_of_problem():
    torch.manual_seed(0)
    ids = torch.randint(3, 40, (4, 5))
    for kind, labels in (
        ("single_label_classification", torch.tensor([0, 1, 2, 0])),
        (None, torch.tensor([1, 1, 0, 2])),
    ):
        model = SentenceEncoderForSequenceClassification(
            SentenceEncoderConfig(text_config=CONFIGS["bert"].to_dict(), num_labels=3, problem_type=kind)
        ).eval()
        output = model(input_ids=ids, labels=labels)
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    many = torch.randint(0, 2, (4, 3)).float()
    model.config.problem_type = "multi_label_classification"
    output = model(input_ids=ids, labels=many)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, many)
    torch.testing.assert_close(output.loss, expected)


def test_an_unknown_pooling_is_refused_by_the_class():
    with pytest.raises(ValueError, match="attention"):
        SentenceEncoderForSequenceClassification(
            SentenceEncoderConfig(text_config=CONFIGS["bert"].to_dict(), pooling="attention")
        )


# --- what a checkpoint says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODES)
def test_the_file_of_sentence_transformers_is_read(kind, tmp_path):
    pooling_file(tmp_path, MODES[kind])
    assert checkpoint_pooling(source_of(tmp_path)) == kind


@pytest.mark.parametrize(
    ("written", "kind"), [({"pooling_mode": "mean"}, "mean"), ({"pooling_mode": "lasttoken"}, "last")]
)
def test_the_newer_form_of_the_file_is_read(written, kind, tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(written))
    assert checkpoint_pooling(source_of(tmp_path)) == kind


def test_modules_json_says_where_the_file_is_and_what_else_there_is(tmp_path, caplog):
    pooling_file(tmp_path, MODES["max"], path="pool")
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "pool", "type": "sentence_transformers.sentence_transformer.modules.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert checkpoint_pooling(source_of(tmp_path)) == "max"
    assert "Dense" in caplog.text


@pytest.mark.parametrize(
    "modes",
    [
        ("pooling_mode_weightedmean_tokens",),
        ("pooling_mode_mean_sqrt_len_tokens",),
        ("pooling_mode_cls_token", "pooling_mode_mean_tokens"),
        (),
    ],
)
def test_other_poolings_are_refused_by_name(modes, tmp_path):
    pooling_file(tmp_path, *modes)
    with pytest.raises(CheckpointError, match=r"model\.pooling"):
        checkpoint_pooling(source_of(tmp_path))
    assert choose_pooling(CONFIGS["bert"], source_of(tmp_path), "mean") == "mean"


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json"])
def test_an_unknown_pooling_is_told(name, tmp_path, caplog):
    (tmp_path / name).write_text("[]" if name == "modules.json" else "{}")
    assert checkpoint_pooling(source_of(tmp_path)) is None
    assert "pooling is unknown" in caplog.text and "model.pooling" in caplog.text


def test_plain_checkpoints_and_trained_heads_keep_their_own(tmp_path, caplog):
    assert choose_pooling(CONFIGS["bert"], source_of(tmp_path), "auto") is None and not caplog.records
    pooling_file(tmp_path, MODES["mean"])
    trained = BertConfig(architectures=["BertForSequenceClassification"])
    assert choose_pooling(trained, source_of(tmp_path), "auto") is None
    pooling_file(tmp_path, MODES["last"])
    assert choose_pooling(CONFIGS["gpt2"], source_of(tmp_path), "auto") is None  # its own head reads the last token
    assert choose_pooling(CONFIGS["bert"], source_of(tmp_path), "auto") == "last"


@pytest.mark.parametrize("path", ["../elsewhere", "/etc"])
def test_modules_json_cannot_name_a_file_outside(path, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Pooling"}]))
    if path.startswith(".."):
        pooling_file(tmp_path, MODES["mean"], path="elsewhere")
        with pytest.raises(CheckpointError, match="outside"):
            checkpoint_pooling(source_of(tmp_path / "in"))
    else:
        assert checkpoint_pooling(source_of(tmp_path / "in")) is None


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_trains_predicts_and_opens_in_a_pipeline(make_recipe, encoder_folder, caplog):
    with caplog.at_level(logging.INFO, logger="sft_hf"):
        result = finetune(make_recipe(model__name=str(encoder_folder), train__num_train_epochs=3))
    assert "pooling: mean" in caplog.text and "learning rate of the new head: 0.1" in caplog.text
    assert result.metrics["test"]["accuracy"] > 0.9
    folder = result.output_dir / "model"
    assert json.loads((folder / "config.json").read_text())["pooling"] == "mean"
    texts = ["goal match team", "bank rate dollar profit", "bread cheese soup"]
    classify = pipeline("text-classification", model=str(folder))
    answers = list(predict_files(result.output_dir, texts))
    for answer, piped in zip(answers, classify(texts, batch_size=3), strict=True):
        assert answer["prediction"] == piped["label"]
        assert answer["confidence"] == pytest.approx(piped["score"], abs=1e-5)
    assert "import sft_hf.models.sentence_encoder" in (folder / "README.md").read_text()


@pytest.mark.long
def test_plain_transformers_name_the_class_instead_of_opening_another(make_recipe, encoder_folder):
    result = finetune(make_recipe(model__name=str(encoder_folder), train__max_steps=1))
    code = (
        "import sys\nfrom transformers import AutoModelForSequenceClassification as A\n"
        "try: A.from_pretrained(sys.argv[1])\nexcept ValueError as error: print(error)\nelse: print('opened')"
    )
    command = [sys.executable, "-c", code, str(result.output_dir / "model")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "sft_hf_sentence_encoder" in told and "opened" not in told


def test_auto_is_the_architectures_head_where_there_is_no_pooling(make_recipe, tmp_path):
    result = finetune(make_recipe(train__max_steps=1))
    assert isinstance(
        AutoModelForSequenceClassification.from_pretrained(result.output_dir / "model"), BertForSequenceClassification
    )


def test_a_finished_run_is_trained_on_with_its_pooling_and_head(make_recipe, encoder_folder, tmp_path):
    first = finetune(make_recipe(model__name=str(encoder_folder), train__max_steps=3))
    recipe = make_recipe(
        model__name=str(first.output_dir / "model"), train__max_steps=1, output_dir=str(tmp_path / "second")
    )
    second = finetune(recipe)
    config = AutoConfig.from_pretrained(second.output_dir / "model")
    assert isinstance(config, SentenceEncoderConfig) and config.pooling == "mean"


@pytest.mark.parametrize(
    "changes",
    [
        {"techniques": [{"name": "layerwise_learning_rate_decay"}, {"name": "reinit_layers"}]},
        long({"techniques": [{"name": "lp_ft"}, {"name": "r_drop"}]}),
        {"techniques": [{"name": "gradual_unfreezing"}, {"name": "adversarial"}]},
        {"train__freeze": ["backbone"]},
        long({"train__gradient_checkpointing": True}),
        {"model__config_overrides": {"hidden_dropout_prob": 0.0}, "model__attn_implementation": "eager"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_techniques_and_freezing_work_with_it(changes, make_recipe, encoder_folder):
    result = finetune(make_recipe(model__name=str(encoder_folder), train__max_steps=6, **changes))
    assert result.metrics["model"]["type"] == "sft_hf_sentence_encoder"


def test_pooling_is_refused_where_there_is_nothing_to_pool(make_image_recipe, make_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"model\.pooling"):
        make_image_recipe(model__pooling="mean")
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("goal 0.1 0.2\nbank 0.3 0.1\n")
    with pytest.raises(RecipeError, match=r"task\.embeddings\.pooling"):
        finetune(make_recipe(model__name=str(vectors), model__pooling="mean"))


def test_the_encoder_is_the_one_of_the_checkpoint(encoder_folder):
    model = SentenceEncoderForSequenceClassification.from_encoder(str(encoder_folder), pooling="cls", num_labels=2)
    plain = AutoModel.from_pretrained(encoder_folder)
    own = dict(model.backbone.named_parameters())
    for name, parameter in plain.named_parameters():
        if "pooler" not in name:
            torch.testing.assert_close(own[name], parameter)
    assert not any("pooler" in name for name in own)
