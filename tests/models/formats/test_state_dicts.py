"""A plain state dict becomes a model: by name and shape, and never by running what is in the file."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file

from sft_hf.core.errors import CheckpointError, RecipeError
from sft_hf.core.recipe.recipe import ModelSection
from sft_hf.core.sources.sources import resolve
from sft_hf.models.formats.state_dicts import (
    build_config,
    load_from_state_dict,
    match,
    read_state_dict,
    rename,
    timm_preprocessing,
)

ARCHITECTURE = "test_efficientnet"
THREE = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.fixture(scope="module")
def theirs():
    """The state dict of a timm model with 7 classes, every tensor random, buffers too."""
    import timm

    torch.manual_seed(3)
    state = timm.create_model(ARCHITECTURE, num_classes=7).state_dict()
    return {
        name: torch.rand_like(value) if value.is_floating_point() else torch.tensor(5) for name, value in state.items()
    }


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level("INFO", logger="sft_hf")
    return caplog


def renamed(state):
    """The same tensors in the same order, called as another codebase would."""
    return {f"layer{index}.{name.split('.')[-1]}": value for index, (name, value) in enumerate(state.items())}


def build(path, architecture=ARCHITECTURE, head=THREE, **section):
    from transformers import AutoModelForImageClassification

    source = resolve(str(path))
    return load_from_state_dict(
        AutoModelForImageClassification,
        build_config(source, architecture),
        source,
        ModelSection(name=str(path), architecture=architecture, **section),
        head,
    )


def same(model, state, but=("classifier",)):
    inner = getattr(model, "timm_model", model).state_dict()
    assert inner.keys() == state.keys()
    return all(torch.equal(inner[name], state[name]) for name in inner if not name.startswith(but))


def saved(folder, content, name="weights.pth"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "twice", "mapping", "half", "safetensors"])
def test_weights_are_found_by_name(tmp_path, theirs, heard, wrap):
    content = {
        "plain": theirs,
        "state_dict": {"epoch": 3, "state_dict": theirs},
        "module": {f"module.{name}": value for name, value in theirs.items()},
        "twice": {"model": {"state_dict": {f"module.model.{name}": value for name, value in theirs.items()}}},
        "mapping": {f"trunk/{name}": value for name, value in theirs.items()},
        "half": {name: value.bfloat16().float() for name, value in theirs.items()},
        "safetensors": theirs,
    }[wrap]
    mapping = {"key_mapping": {"^trunk/": ""}} if wrap == "mapping" else {}
    if wrap == "half":
        path = saved(tmp_path, {name: value.bfloat16() for name, value in content.items()})
    elif wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(theirs, path)
    else:
        path = saved(tmp_path, content)
    model = build(path, **mapping)
    assert same(model, content if wrap == "half" else theirs)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "randomly initialized weights: classifier.weight, classifier.bias" in heard.text


def test_with_as_many_classes_the_head_is_kept(tmp_path, theirs):
    head = {"num_labels": 7, "id2label": {index: str(index) for index in range(7)}}
    assert same(build(saved(tmp_path, theirs), head=head), theirs, but=("none",))


LIBRARY_NAMES = {  # of EfficientNet-PyTorch, blocks 0 (without an expansion), 1 and 15 of the Lite0 network
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_var": "bn1.running_var",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.running_mean": "blocks.0.0.bn2.running_mean",
    "_blocks.1._expand_conv.weight": "blocks.1.0.conv_pw.weight",
    "_blocks.1._bn0.weight": "blocks.1.0.bn1.weight",
    "_blocks.1._depthwise_conv.weight": "blocks.1.0.conv_dw.weight",
    "_blocks.1._bn1.weight": "blocks.1.0.bn2.weight",
    "_blocks.1._project_conv.weight": "blocks.1.0.conv_pwl.weight",
    "_blocks.1._bn2.weight": "blocks.1.0.bn3.weight",
    "_blocks.15._bn2.num_batches_tracked": "blocks.6.0.bn3.num_batches_tracked",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.bias": "bn2.bias",
    "_fc.bias": "classifier.bias",
}


def library_state(target):
    """A timm state dict under the names of EfficientNet-PyTorch, written down block by block."""
    blocks = list(dict.fromkeys(name.split(".conv_")[0] for name in target if name.endswith("conv_dw.weight")))
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    expanded = {
        **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"},
        **{"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"},
    }
    around = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    state = {}
    for name, value in target.items():
        module, kind = name.rsplit(".", 1)
        block, _, part = module.rpartition(".")
        if block:
            parts = expanded if f"{block}.conv_pwl.weight" in target else plain
            state[f"_blocks.{blocks.index(block)}.{parts[part]}.{kind}"] = value
        else:
            state[f"{around[module]}.{kind}"] = value
    return state


def test_names_of_the_efficientnet_pytorch_library_are_known(tmp_path):
    import timm

    target = {
        name: torch.rand_like(value) if value.is_floating_point() else torch.tensor(5)
        for name, value in timm.create_model("tf_efficientnet_lite0", num_classes=7).state_dict().items()
    }
    other = library_state(target)
    assert all(other[theirs] is target[ours] for theirs, ours in LIBRARY_NAMES.items())
    shuffled = dict(sorted(other.items()))  # the order of the file says nothing
    assert same(build(saved(tmp_path, shuffled), "tf_efficientnet_lite0"), target)


def test_other_names_are_an_error_that_shows_both_sides(tmp_path, theirs):
    with pytest.raises(CheckpointError) as caught:
        build(saved(tmp_path, renamed(theirs)))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("conv_stem.weight [", "layer0.weight [", "model.architecture", "model.key_mapping"):
        assert word in message


def test_what_is_not_used_is_said(tmp_path, theirs, heard):
    model = build(saved(tmp_path, {**theirs, "teacher.weight": torch.ones(2)}))
    assert same(model, theirs)
    assert "not used from weights.pth: classifier.weight, classifier.bias, teacher.weight" in heard.text


def test_match_never_joins_other_shapes():
    target = {"a": torch.ones(2), "b": torch.ones(3)}
    assert match({"a": torch.ones(3), "b": torch.ones(3)}, target) == {"b": "b"}
    assert match({"x.a": torch.ones(2), "y": torch.ones(3)}, target, prefix="x.") == {"a": "x.a"}
    assert match({"x": torch.ones(2), "y": torch.ones(3)}, target) == {}


def test_a_transformers_architecture(tmp_path, image_checkpoint, heard):
    from transformers import ViTModel

    state = ViTModel.from_pretrained(image_checkpoint).state_dict()
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    overrides = {**sizes, "num_attention_heads": 2, "intermediate_size": 32}
    for prefix in ("", "vit."):
        path = saved(tmp_path, {f"{prefix}{name}": value for name, value in state.items()})
        model = build(path, "vit", config_overrides=overrides)
        own = {f"vit.{name}": value for name, value in state.items() if not name.startswith("pooler")}
        assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())
        assert model.config.image_size == 16
    assert "not used from weights.pth: vit.pooler.dense.weight" in heard.text


def test_a_saved_model_of_that_kind_opens_again(tmp_path, theirs):
    from transformers import AutoModelForImageClassification

    model = build(saved(tmp_path, theirs))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


class Whole(torch.nn.Module):
    pass


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(2, 2), ["not a plain state dict", "would run code", "torch.save(model.state_dict()"]),
        (Whole(), ["not a plain state dict", "model.state_dict()"]),
        (Bomb(), ["not a plain state dict"]),
        ({"state_dict": {"a": Bomb()}}, ["not a plain state dict"]),
        ([torch.ones(2)], ["a list", "model.state_dict()"]),
        ({"epoch": 3, "lr": 0.1}, ["epoch, lr", "instead of named tensors"]),
        ({}, ["an empty dict"]),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, content, words):
    path = saved(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"words, words", b"PK\x03\x04" + b"\x00" * 40, b"\x80\x02}q\x00."])
def test_damaged_files_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_state_dict(path)


def test_a_truncated_file_is_refused(tmp_path, theirs):
    path = saved(tmp_path, theirs)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state_dict(path)


def test_key_mapping_is_checked():
    tensors = {"a.x": torch.ones(1), "b.x": torch.ones(1)}
    assert list(rename(tensors, {r"\.x$": ".weight"})) == ["a.weight", "b.weight"]
    with pytest.raises(RecipeError, match="gives two weights the name 'x'"):
        rename(tensors, {r"^\w\.": ""})
    with pytest.raises(RecipeError, match=r"model\.key_mapping: '\('"):
        rename(tensors, {"(": ""})
    with pytest.raises(RecipeError, match=r"model\.key_mapping"):
        rename(tensors, {"a": r"\1"})


@pytest.mark.parametrize(
    ("architecture", "error", "words"),
    [
        (None, CheckpointError, ["model.architecture", "timm"]),
        ("test_efficientnett", RecipeError, ["did you mean test_efficientnet"]),
        ("zzzzzzzzzzz", RecipeError, ["timm.list_models()"]),
    ],
)
def test_the_architecture_has_to_be_named(tmp_path, theirs, architecture, error, words):
    with pytest.raises(error) as caught:
        build(saved(tmp_path, theirs), architecture)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_known_architecture_has_the_preprocessing_that_its_weights_want():
    known = timm_preprocessing("tf_efficientnet_lite0")
    assert known["mean"] == known["std"] == (0.5, 0.5, 0.5)
    assert known["input_size"] == (3, 224, 224)
    assert timm_preprocessing("no_such_model") is None
