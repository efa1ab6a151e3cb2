"""Recipes: YAML in, overrides through the same validation, errors that say what would be right, YAML back."""

from __future__ import annotations

import json

import pytest

from sft_hf.core.errors import RecipeError
from sft_hf.core.recipe.lookup import find_recipe, list_recipes
from sft_hf.core.recipe.recipe import json_schema, load_recipe, validate_recipe
from sft_hf.core.recipe.yaml_files import read_yaml

MINIMAL = """
task: {name: text_classification}
model: {name: org/model}
data: {name: org/data}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


def load(path, *overrides):
    return load_recipe(str(path), overrides)


def test_defaults_are_filled_in_and_the_result_loads_back_equal(recipe_file, tmp_path):
    recipe = load(recipe_file, "optim.learning_rate=3e-5", "train.mixed_precision=no", "data.label_names=[no, 1e5]")
    assert recipe.optim.learning_rate == 3e-5
    assert recipe.train.mixed_precision == "no"
    assert recipe.task.max_length == 256
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert load(again) == recipe


def test_the_run_folder_is_named_after_the_recipe(recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(recipe_file).output_dir == str(tmp_path / "runs" / "mine")
    assert load(recipe_file, "output_dir=there").output_dir == str(tmp_path / "there")


def test_local_paths_become_absolute(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    assert load(recipe_file, "data.name=rows.csv").data.name == str(tmp_path / "rows.csv")
    assert load(recipe_file).data.name == "org/data"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "optim.learnign_rate=1",
            ["optim.learnign_rate", "unknown key", "did you mean learning_rate", "weight_decay"],
        ),
        ("optin.learning_rate=1", ["optin", "did you mean optim", "train"]),
        ("task.max_lenght=1", ["task.max_lenght", "did you mean max_length"]),
        ("task.name=text_clasification", ["text_clasification", "did you mean text_classification"]),
        ("train.mixed_precision=fp8", ["train.mixed_precision", "'bf16'", "fp8"]),
        ("optim.learning_rate=fast", ["optim.learning_rate", "number", "fast"]),
        ("optim.learning_rate=-1", ["optim.learning_rate", "greater than 0"]),
        ("optim.learning_rate=.inf", ["optim.learning_rate", "finite"]),
        ("data.max_train_samples=0", ["data.max_train_samples", "greater than 0"]),
        ("model.name=", ["model.name", "string"]),
        ("seed.more=1", ["seed", "integer"]),
        ("learning_rate", ["KEY=VALUE"]),
        ("=1", ["KEY=VALUE"]),
        ("optim.=1", ["KEY=VALUE"]),
        ("optim.args=[1", ["optim.args", "not valid YAML"]),
        (
            "techniques=[{name: mixop}]",
            ["command line: techniques", "no technique is called 'mixop'", "did you mean mixup"],
        ),
        ("techniques=[{name: mixup, alfa: 1}]", ["techniques: mixup: alfa: unknown key", "did you mean alpha"]),
        ("techniques=[{name: mixup, alpha: -1}]", ["techniques: mixup: alpha", "greater than 0"]),
        ("techniques=[mixup, {name: mixup}]", ["techniques", "mixup is listed twice"]),
        ("techniques=[{alpha: 1}]", ["techniques", "number 1 has no name"]),
        ("techniques=[3]", ["techniques"]),
        ("techniques={name: mixup}", ["techniques", "[...]"]),
        ("peft={r: 8}", ["peft", "peft_type is missing", "LORA"]),
        ("optim.args" + ".a" * 300 + "=1", ["100 deep"]),
        ("optim.args.\udcff=1", ["half a surrogate"]),
        ("x" * 100_000, ["KEY=VALUE"]),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_would_be_right(recipe_file, override, words):
    with pytest.raises(RecipeError) as caught:
        load(recipe_file, override)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 5000])
def test_names_that_no_file_can_have_are_no_crash(recipe_file, name):
    recipe = load(recipe_file, f"data.name={name}", f"output_dir={name}")
    assert recipe.data.name == name
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(f"{name}.yaml")


def test_an_override_of_a_plain_value_has_no_keys_inside(recipe_file):
    recipe_file.write_text(MINIMAL + "seed: 3\n")
    with pytest.raises(RecipeError, match="seed is 3, which has no keys inside"):
        load(recipe_file, "seed.more=1")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("epochs=1", "train.num_train_epochs"),
        ("lr=1e-4", "optim.learning_rate"),
        ("batch_size=8", "train.per_device_train_batch_size"),
        ("max_length=8", "task.max_length"),
        ("learnig_rate=8", "optim.learning_rate"),
        ("optim.lr=1", "optim.learning_rate"),
        ("train.learning_rate=1", "optim.learning_rate"),
        ("tsk=1", "task"),
    ],
)
def test_a_key_without_its_section_is_found(recipe_file, override, key):
    with pytest.raises(RecipeError) as caught:
        load(recipe_file, override)
    assert f"did you mean {key}?" in str(caught.value)


def test_a_key_of_the_task_without_its_section_is_found():
    data = {"task": "speech_recognition", "model": {"name": "a/b"}, "data": {"name": "c/d"}, "language": "german"}
    with pytest.raises(RecipeError, match=r"did you mean task\.language\?"):
        validate_recipe(data)


def test_a_name_in_place_of_its_section(recipe_file):
    for section in ("data", "model"):
        with pytest.raises(RecipeError) as caught:
            load(recipe_file, f"{section}=my trash")
        assert f"{section}.name='my trash'" in str(caught.value)
        assert f"{section}='{{name: my trash}}'" in str(caught.value)
    with pytest.raises(RecipeError, match=r"train: .*num_train_epochs"):
        load(recipe_file, "train=3")


def test_a_missing_section_says_what_it_is():
    with pytest.raises(RecipeError, match=r"data: missing; The labeled data"):
        validate_recipe({"task": {"name": "text_classification"}, "model": {"name": "x/y"}})
    with pytest.raises(RecipeError, match=r"model\.name: missing; A Hub id"):
        validate_recipe({"task": {"name": "text_classification"}, "model": {}, "data": {"name": "x/y"}})


def test_the_file_is_named_in_the_error(recipe_file):
    recipe_file.write_text(MINIMAL + "extra: 1\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: extra: unknown key"):
        load(recipe_file)


def test_the_task_may_be_given_by_name_alone(recipe_file):
    recipe_file.write_text(MINIMAL.replace("{name: text_classification}", "text_classification"))
    assert load(recipe_file, "task.max_length=64").task.max_length == 64
    assert load(recipe_file, "task=text_classification").task.name == "text_classification"


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(RecipeError, match=r"did you mean text\?"):
        find_recipe("txt")
    with pytest.raises(RecipeError, match="no such recipe file"):
        find_recipe("absent.yaml")


def test_a_recipe_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "text.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert find_recipe("text") == tmp_path / "recipes" / "text.yaml"


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_recipe_that_ships_is_valid_and_points_editors_to_the_schema(name):
    path = list_recipes()[name]
    load_recipe(name)
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=./schema.json"


def test_the_schema_that_ships_is_the_schema():
    shipped = json.loads((list_recipes()["text"].parent / "schema.json").read_text())
    assert shipped == json_schema()


def test_the_schema_describes_every_key():
    schema = json_schema()

    def walk(node, path):
        for name, entry in node.get("properties", {}).items():
            assert {"description", "const", "$ref"} & entry.keys(), f"{path}.{name}"
            walk(entry, f"{path}.{name}")

    for name, definition in {
        **schema["$defs"],
        "Recipe": schema,
        "task": schema["properties"]["task"]["oneOf"][0],
    }.items():
        assert definition.get("additionalProperties") is False, name
        walk(definition, name)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.text_column=#1 String", "#1 String"),
        ("data.delimiter=\t", "\t"),
        ("data.label_separator= ", " "),
        ("data.quote_char=", ""),
        ("data.validation_split=", None),
        ("data.text_column=Tweet #2", "Tweet #2"),
        ("data.text_pair_column=a: b", "a: b"),
        ("data.text_pair_column=null", None),
        ("data.text_column=@user", "@user"),
        ("data.text_column=*", "*"),
        ("data.text_column=&x", "&x"),
        ("data.text_column=!tag", "!tag"),
        ("data.text_column=%", "%"),
        ("data.text_column=no", "no"),
        ("data.text_column=007", "007"),
        ("data.text_column=1e5", "1e5"),
        ("data.text_column='#1 String'", "#1 String"),
        ('data.text_column="a" and b', '"a" and b'),
        ("data.delimiter=|", "|"),
        ('data.quote_char=""', ""),
        ("data.quote_char=null", None),
        ("data.label_names=[01, no, '#3']", ["01", "no", "#3"]),
        ("data.column_names=[1, 2]", ["1", "2"]),
    ],
)
def test_texts_of_overrides_are_taken_literally(recipe_file, override, value):
    loaded = load(recipe_file, override)
    assert getattr(loaded.data, override.partition("=")[0].removeprefix("data.")) == value


@pytest.mark.parametrize(
    "override", ["data.max_train_samples=10 # ten", "data.label_names=[a, #b]", "model.config_overrides.x=#3"]
)
def test_comments_of_overrides_are_refused(recipe_file, override):
    with pytest.raises(RecipeError, match=r"#.*quotes|quotes.*#|# in quotes"):
        load(recipe_file, override)


def test_a_comment_in_place_of_a_value_is_refused(recipe_file):
    text = recipe_file.read_text()
    assert "data:" in text
    (recipe_file.parent / "b.yaml").write_text("a: #1 String\n")
    with pytest.raises(RecipeError, match=r"line 1.*'#1 String' is a comment"):
        read_yaml(recipe_file.parent / "b.yaml")
    (recipe_file.parent / "c.yaml").write_text("a: # nothing yet\nb:   #section\n  c: 1\n")
    assert read_yaml(recipe_file.parent / "c.yaml") == {"a": None, "b": {"c": 1}}


def test_another_name_drops_what_the_file_says_of_the_old_one(recipe_file):
    pins = "{name: org/a, revision: v1, license: mit, attn_implementation: eager}"
    recipe_file.write_text(MINIMAL.replace("{name: org/model}", pins))
    assert load(recipe_file).model.revision == "v1"
    model = load(recipe_file, "model.name=org/b").model
    assert (model.revision, model.license, model.attn_implementation) == (None, None, "eager")
    assert load(recipe_file, "model.revision=v2", "model.name=org/b").model.revision == "v2"
