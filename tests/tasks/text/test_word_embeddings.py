"""Classifiers on word vectors: which words they know, that padding counts for nothing, and whole runs on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import briefly, killed_and_resumed
from tiers import long
from tiny_recipes import tiny_recipe
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.sources.sources import resolve
from sft_hf.jobs.inference import evaluate_run
from sft_hf.jobs.run import predict_files
from sft_hf.tasks.text.embedding_files import find_embeddings
from sft_hf.tasks.text.word_embeddings import (
    WordEmbeddingsConfig,
    WordEmbeddingSettings,
    WordEmbeddingsForSequenceClassification,
    frequent_words,
    read_starting_point,
)

TOPICS = {
    "sport": "goal match team coach league player score win".split(),
    "money": "bank rate dollar market share profit loss stock".split(),
    "food": "bread cheese soup cook taste salt dinner apple".split(),
}
KNOWN = ["the", "a", "of", "and", "to", *(word for words in TOPICS.values() for word in words[:6])]  # others lack one


def write_vectors(path, words, size=8):
    matrix = np.random.default_rng(0).normal(size=(len(words), size)).round(3)
    rows = [f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, matrix, strict=True)]
    path.write_text("".join(rows), encoding="utf-8")
    return matrix.astype(np.float32)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A file of 23 word vectors of 8 dimensions."""
    path = tmp_path_factory.mktemp("vectors") / "glove.txt"
    write_vectors(path, KNOWN)
    return path


@pytest.fixture
def make(make_recipe, vectors):
    """Return a function that makes a recipe on the word vectors."""

    def make(**changes):
        defaults = {"model__name": str(vectors), "optim__learning_rate": 0.05, "train__num_train_epochs": 4}
        changes = {**defaults, **changes}
        if "task__embeddings" in changes:  # half of eight dimensions is too much
            changes["task__embeddings"] = {"dropout": 0.1, **changes["task__embeddings"]}
        return make_recipe(**changes)

    return make


def build(pooling="mean", encoder="none", **changes):
    torch.manual_seed(0)
    options = {"vocab_size": 30, "embedding_size": 6, "hidden_size": 5, "num_labels": 3, "kernel_sizes": [2, 3]}
    return WordEmbeddingsForSequenceClassification(
        WordEmbeddingsConfig(pooling=pooling, encoder=encoder, **{**options, **changes})
    ).eval()


# --- which words are known -------------------------------------------------------------------------------------


def test_words_are_cut_lowercased_and_counted():
    texts = ["The U.S. bank, the bank", "Bank don't THE 12.5", "[UNK] rare"]
    assert frequent_words(texts, 2, True) == [".", "bank", "the"]  # three times each: by alphabet
    assert frequent_words(["b b a", "c c c"], 1, True) == ["c", "b", "a"]
    assert set(frequent_words(texts, 1, True)) == set("the bank u . s , don ' t 12 5 [ unk ] rare".split())
    assert set(frequent_words(texts, 1, False)) >= {"The", "the", "THE", "Bank", "bank"}
    assert frequent_words([], 1, True) == []


def test_known_are_the_first_words_of_the_file_and_the_frequent_ones_of_the_texts(tmp_path):
    words = ["the", "of", "goal", "bank", "rare", "zygote"]
    matrix = write_vectors(tmp_path / "v.txt", words)
    source = find_embeddings(resolve(str(tmp_path / "v.txt")))
    texts = ["Zygote tax zygote bank tax fee", "rare tax fee"]
    tokenizer, rows = read_starting_point(source, texts, WordEmbeddingSettings(most_frequent=2, min_count=2))
    known = ["the", "of", "zygote"]
    assert [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])] == [
        *["[PAD]", "[UNK]", *known],
        *["tax", "fee"],  # no vector: they start where [UNK] does
    ]
    mean = matrix[[0, 1, 5]].mean(axis=0)
    assert np.array_equal(rows[2:5], matrix[[0, 1, 5]])
    assert np.array_equal(rows[0], np.zeros(8))
    assert all(np.allclose(rows[index], mean) for index in (1, 5, 6))
    assert tokenizer("THE zygote, bank fee")["input_ids"] == [2, 4, 1, 1, 6]
    assert tokenizer("the", "of")["input_ids"] == [2, 3]  # a pair
    assert set(tokenizer("the")) == {"input_ids", "attention_mask"}


def test_words_of_rows_that_are_held_out_are_not_learned(make, tmp_path):
    """Every row has a word of its own: those of the validation rows must not be known."""
    rows = [f"w{index}x {words[index % 8]},{topic}" for topic, words in TOPICS.items() for index in range(30)]
    texts = [row.replace("w", f"{'abc'[number // 30]}", 1) for number, row in enumerate(rows)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(texts) + "\n")
    settings = {"most_frequent": 0, "min_count": 1}
    result = briefly(make(data__name=str(tmp_path / "rows.csv"), task__embeddings=settings, train__num_train_epochs=1))
    vocabulary = AutoTokenizer.from_pretrained(result.output_dir / "model").get_vocab()
    own = {word for word in vocabulary if word.endswith("x")}
    assert len(own) == result.metrics["train"]["num_examples"] == 72  # of 90, 9 for validation and 9 for test
    predictions = [json.loads(line) for line in (result.output_dir / "predictions.jsonl").read_text().splitlines()]
    held_out = {texts[row["id"]].split()[0] for row in predictions}
    assert len(held_out) == 9 and not held_out & own


def test_a_stream_knows_the_words_of_the_file_only(make):
    result = briefly(
        make(
            data__streaming=True,
            data__validation_fraction=0,
            data__label_names=["sport", "money", "food"],
            train__max_steps=4,
        )
    )
    vocabulary = AutoTokenizer.from_pretrained(result.output_dir / "model").get_vocab()
    assert set(vocabulary) == {"[PAD]", "[UNK]", *KNOWN}


# --- the model -------------------------------------------------------------------------------------------------

IDS = torch.tensor([[5, 9, 4, 7, 2, 3], [8, 5, 6, 0, 0, 0], [3, 0, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
LENGTHS = (6, 3, 1)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention", "mean_max"])
def test_pooling_leaves_padding_out(pooling):
    model = build(pooling)
    table = model.backbone.embeddings.weight.detach().numpy().astype(np.float64)
    weight, bias = (tensor.detach().numpy() for tensor in (model.classifier.weight, model.classifier.bias))
    for row, length in enumerate(LENGTHS):
        words = table[IDS[row, :length].numpy()]
        if pooling == "attention":
            scores = words @ model.backbone.pool.scorer.weight.detach().numpy()[0]
            shares = np.exp(scores - scores.max())
            text = (shares / shares.sum()) @ words
        else:
            parts = {"mean": words.mean(axis=0), "max": words.max(axis=0)}
            text = np.concatenate([parts[name] for name in pooling.split("_")])
        expected = weight @ text + bias
        assert model(IDS, MASK).logits[row].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention", "mean_max"])
@pytest.mark.parametrize("encoder", ["none", "cnn", "bilstm"])
def test_padding_changes_nothing(pooling, encoder):
    model = build(pooling, encoder)
    with torch.no_grad():  # a padding vector that is not zero would show
        model.backbone.embeddings.weight[0] = 9.0
    together = model(IDS, MASK).logits
    for row, length in enumerate(LENGTHS):
        alone = model(IDS[row : row + 1, :length]).logits[0]
        assert torch.allclose(together[row], alone, atol=1e-6)
        vectors = model.get_input_embeddings()(IDS[row : row + 1, :length])
        assert torch.allclose(model(inputs_embeds=vectors).logits[0], alone, atol=1e-6)


@pytest.mark.parametrize("encoder", ["cnn", "bilstm"])
def test_an_encoder_tells_the_order_of_words(encoder):
    plain, encoded = build("mean"), build("mean", encoder)
    turned = IDS[:1].flip(1)
    assert torch.allclose(plain(IDS[:1]).logits, plain(turned).logits, atol=1e-6)
    assert not torch.allclose(encoded(IDS[:1]).logits, encoded(turned).logits, atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention", "mean_max"])
@pytest.mark.parametrize("encoder", ["none", "cnn", "bilstm"])
def test_a_text_without_words_has_finite_scores_and_gradients(pooling, encoder):
    model = build(pooling, encoder)
    mask = torch.cat([MASK[:2], torch.zeros_like(MASK[:1])])
    model(IDS, mask, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    none = model(torch.empty(2, 0), torch.empty(2, 0)).logits  # as the tokenizer gives them: floats
    assert none.shape == (2, 3) and torch.isfinite(none).all()


def test_the_loss_follows_the_problem_type():
    labels = torch.tensor([0, 2, 1])
    model = build("mean", problem_type="single_label_classification")
    output = model(IDS, MASK, labels=labels)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())
    model = build("mean", problem_type="multi_label_classification")
    several = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    output = model(IDS, MASK, labels=several)
    scores = output.logits.sigmoid()
    expected = -(several * scores.log() + (1 - several) * (1 - scores).log()).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("encoder", ["none", "cnn", "bilstm"])
@pytest.mark.parametrize("freeze", [False, True])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, encoder, freeze):
    model = build("mean_max", encoder, freeze=freeze)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, WordEmbeddingsForSequenceClassification) and not again.training
    assert isinstance(AutoConfig.from_pretrained(tmp_path), WordEmbeddingsConfig)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDS, MASK).logits, again(IDS, MASK).logits)
    frozen = [name for name, parameter in again.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.embeddings.weight"] * freeze


def test_a_pooling_that_is_none_is_refused():
    with pytest.raises(ValueError, match="pooling 'min': valid are mean, max"):
        build("min")


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vectors, data_folder):
    """A finished run that several tests look at, and none changes."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    changes = {
        "task__max_length": None,
        "task__embeddings": {"min_count": 1, "dropout": 0.1},
        "train__num_train_epochs": 4,
        "optim__learning_rate": 0.05,
    }
    return briefly(tiny_recipe("text_classification", vectors, data_folder, folder, **changes))


def test_a_run_learns_and_is_scored_alike_ever_after(trained):
    assert trained.metrics["test"]["accuracy"] > 0.9
    again = evaluate_run(trained.output_dir, "test")
    assert again["accuracy"] == trained.metrics["test"]["accuracy"]
    assert again["loss"] == pytest.approx(trained.metrics["test"]["loss"], rel=1e-6)


def test_a_transformers_pipeline_gives_our_predictions(trained):
    classify = pipeline("text-classification", model=str(trained.output_dir / "model"), device="cpu")
    assert isinstance(classify.model, WordEmbeddingsForSequenceClassification)
    texts = ["the Goal of the match", "bank profit, and stock", "cheese", "words nobody knows", "dinner " * 30]
    for text, row in zip(
        texts, predict_files(trained.output_dir, texts, batch_size=3, mixed_precision="no"), strict=True
    ):
        (theirs,) = classify([text])
        assert theirs["label"] == row["prediction"]
        assert theirs["score"] == pytest.approx(row["confidence"], abs=1e-6)
    assert [row["label"] for row in classify(texts[:3], batch_size=2)] == ["sport", "money", "food"]
    assert 0 < classify("")[0]["score"] <= 1


@pytest.mark.long
def test_the_pipeline_needs_no_more_than_the_module(trained):
    """That the pipeline opens it: above."""

    import subprocess
    import sys

    code = (
        "import sft_hf.tasks.text.word_embeddings\n"
        "from transformers import pipeline\n"
        f"classify = pipeline('text-classification', model={str(trained.output_dir / 'model')!r}, device='cpu')\n"
        "print(classify('the match')[0]['label'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "sport\n", done.stderr
    assert "not supported" not in done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "cnn", "pooling": "max", "hidden_size": 8, "kernel_sizes": [1, 4]},
        long({"encoder": "bilstm", "pooling": "mean_max", "hidden_size": 8}),
        {"freeze": True, "lowercase": False, "dropout": 0},
    ],
)
def test_other_settings_make_runs_too(make, settings):
    result = briefly(make(task__embeddings=settings, train__num_train_epochs=6, optim__learning_rate=0.02))
    assert result.metrics["test"]["accuracy"] > 0.6
    model = result.metrics["model"]
    frozen = model["num_parameters"] - model["num_trainable_parameters"]
    saved = load_file(result.output_dir / "model" / "model.safetensors")["backbone.embeddings.weight"]
    assert frozen == (saved.numel() if settings.get("freeze") else 0)


@pytest.mark.parametrize("encoder", [long("none"), "bilstm"])
def test_a_run_that_died_resumes_to_the_same_bits(make, tmp_path, encoder):

    settings = {"checkpoint__save_steps": 4, "train__max_steps": 11, "task__embeddings": {"encoder": encoder}}
    whole = briefly(make(output_dir=str(tmp_path / "whole"), **settings))
    resumed = killed_and_resumed(make(output_dir=str(tmp_path / "died"), **settings), 9)
    for name in ("model/model.safetensors", "model/tokenizer.json", "predictions.jsonl"):
        assert (whole.output_dir / name).read_bytes() == (resumed.output_dir / name).read_bytes()


def test_a_finished_run_is_a_checkpoint_to_go_on_from(trained, make, tmp_path):
    folder = str(trained.output_dir / "model")
    result = briefly(make(model__name=folder, model__config_overrides={"dropout": 0.0}, train__max_steps=2))
    assert result.metrics["test"]["accuracy"] > 0.9
    assert json.loads((result.output_dir / "model" / "config.json").read_text())["dropout"] == 0.0
    (tmp_path / "two.csv").write_text("text,label\n" + "goal match,yes\nbread soup,no\n" * 20)
    result = briefly(make(model__name=folder, data__name=str(tmp_path / "two.csv"), output_dir=str(tmp_path / "two")))
    assert result.metrics["test"]["accuracy"] == 1.0


def test_several_labels_and_pairs_of_texts(make, tmp_path):
    rows = [
        {"text": words[index], "more": f"the {words[index - 1]}", "label": [topic] * (index % 4 > 0)}
        for index in range(8)
        for topic, words in TOPICS.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    result = briefly(make(data__name=str(tmp_path / "rows.jsonl"), data__text_pair_column="more"))
    assert result.metrics["primary_metric"] == "micro_f1"
    config = AutoConfig.from_pretrained(result.output_dir / "model")
    assert config.problem_type == "multi_label_classification" and config.num_labels == 3


def test_a_model2vec_model_brings_its_own_tokenizer(make, tmp_path):
    words = ["<pad>", "[UNK]", *(word for words in TOPICS.values() for word in words)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "static"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "model2vec"}')
    torch.manual_seed(0)
    save_file({"embeddings": torch.randn(len(words), 8).half()}, folder / "model.safetensors")
    result = briefly(make(model__name=str(folder), task__embeddings={"pooling": "mean"}))
    assert result.metrics["test"]["accuracy"] > 0.9
    own = AutoTokenizer.from_pretrained(result.output_dir / "model")
    assert own.get_vocab() == tokenizer.get_vocab()
    assert own.pad_token == "<pad>" and own.unk_token == "[UNK]"
    (row,) = predict_files(result.output_dir, ["bank market"], mixed_precision="no")
    assert row["prediction"] == "money"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__config_overrides": {"pooling": "max"}}, ["config_overrides", "task.embeddings"]),
        ({"task__embeddings": {"poolng": "max"}}, ["task.embeddings.poolng", "did you mean pooling"]),
        ({"task__embeddings": {"pooling": "min"}}, ["task.embeddings.pooling", "'mean_max'", "min"]),
        ({"task__embeddings": {"kernel_sizes": []}}, ["task.embeddings.kernel_sizes"]),
        ({"task__embeddings": {"dropout": 1}}, ["task.embeddings.dropout", "less than 1"]),
    ],
)
def test_settings_that_cannot_be_met_are_recipe_errors(make, changes, words):
    with pytest.raises(RecipeError) as caught:
        briefly(make(**changes))
    assert all(word in str(caught.value) for word in words), caught.value


def test_settings_of_word_vectors_are_refused_for_other_checkpoints(make, checkpoint):
    with pytest.raises(RecipeError, match=r"task\.embeddings requires word vectors.*remove it"):
        briefly(make(model__name=str(checkpoint), task__embeddings={"pooling": "max"}))


def test_damage_stops_a_run_before_anything_is_written(make, tmp_path):
    (tmp_path / "v.txt").write_text("the 1 2\nof 1\n")
    with pytest.raises(CheckpointError, match=r"v\.txt: line 2: expected a word and its 2 numbers, found 1"):
        briefly(make(model__name=str(tmp_path / "v.txt")))
    assert not (tmp_path / "run").exists()


def test_a_damaged_run_is_a_checkpoint_error(trained, tmp_path):
    import shutil

    from sft_hf.jobs.inference import open_trained

    for name, content in (("config.json", '"pooling": "attention"'), ("model.safetensors", "")):
        shutil.copytree(trained.output_dir, tmp_path / name)
        path = tmp_path / name / "model" / name
        if content:
            path.write_text(path.read_text().replace(content, '"pooling": "none"'))
        else:
            path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(CheckpointError, match="weights cannot be loaded"):
            open_trained(tmp_path / name)
