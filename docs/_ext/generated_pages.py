"""Pages written from the code at build time: recipes, recipe keys, techniques, commands and the Python API.

They go to docs/generated/, which git ignores, so they cannot differ from the code that they describe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]

SECTIONS = ("task", "model", "data", "train", "optim", "eval", "checkpoint")

GROUPS = {
    "transfer": "Transfer learning",
    "regularization": "Regularization",
    "labels": "Class imbalance and label noise",
    "confidence": "Confidence",
}
"""Folders of sft_hf/techniques/ and their headings; a folder that is not here is named by its own name."""


def plain(text: Any) -> str:
    """Return text on one line, with nothing that Markdown takes for HTML or emphasis."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("*", "\\*")


def cell(text: Any) -> str:
    """Return text for a cell of a Markdown table."""
    return plain(text).replace("|", "\\|")


def code(value: Any) -> str:
    """Return a default value as YAML would have it, in code style."""
    if value is None:
        return "`null`"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def kind_of(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return a short name for what a JSON schema allows: `integer > 0`, `auto` or `off`, `list of string`."""
    if "$ref" in schema:
        return kind_of(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [kind_of(option, definitions) for option in schema.get("anyOf", schema.get("oneOf"))]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"][:-1]) + f" or `{schema['enum'][-1]}`"
    kind = str(schema.get("type", "any"))
    if kind == "array" and "items" in schema:
        return f"list of {kind_of(schema['items'], definitions)}"
    if kind == "object":
        return "mapping"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = " and ".join(f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema)
    return f"{kind} {limits}".strip()


def key_list(properties: dict[str, Any], prefix: str, required: list[str], definitions: dict[str, Any]) -> list[str]:
    """Return a definition list of keys: name, type and default, then the description."""
    lines = []
    for name, schema in properties.items():
        about = [kind_of(schema, definitions)]
        if name in required:
            about.append("required")
        elif "default" in schema:
            about.append(f"default {code(schema['default'])}")
        lines += [f"`{prefix}{name}` — {', '.join(about)}", f": {plain(schema.get('description', ''))}", ""]
    return lines


def recipe_keys() -> Iterator[str]:
    """Yield the page of all keys of a recipe, from recipes/schema.json."""
    schema = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    definitions, properties = schema["$defs"], schema["properties"]
    yield "# Recipe keys"
    yield ""
    yield (
        "Every key that a recipe may set. This page is generated from the JSON schema, which `sft-hf schema` prints. "
        "On the command line the same keys are given as `KEY=VALUE`, for example `optim.learning_rate=3e-5`."
    )
    yield ""
    yield "## Top level"
    yield ""
    yield from key_list(
        {name: value for name, value in properties.items() if name not in SECTIONS}, "", schema["required"], definitions
    )
    for section in SECTIONS[1:]:
        body = definitions[properties[section]["$ref"].rsplit("/", 1)[-1]]
        yield f"## `{section}`"
        yield ""
        yield body.get("description", "")
        yield ""
        yield from key_list(body["properties"], f"{section}.", body.get("required", []), definitions)
        for key, inner in nested_sections(body["properties"], definitions):
            yield f"### `{section}.{key}`"
            yield ""
            yield inner.get("description", "")
            yield ""
            yield from key_list(inner["properties"], f"{section}.{key}.", inner.get("required", []), definitions)
    for task in properties["task"]["oneOf"]:
        name = task["properties"]["name"]["const"]
        keys = {key: value for key, value in task["properties"].items() if key != "name"}
        yield f"## `task: {{name: {name}}}`"
        yield ""
        yield from key_list(keys, "task.", [], definitions)
        for key, inner in nested_sections(keys, definitions):
            yield f"### `task.{key}`"
            yield ""
            yield from key_list(inner["properties"], f"task.{key}.", [], definitions)


def nested_sections(properties: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, JSON schema) of the keys whose values are mappings with keys of their own."""
    for key, schema in properties.items():
        for option in schema.get("anyOf", [schema]):
            inner = definitions.get(option.get("$ref", "").rpartition("/")[2], {})
            if "properties" in inner:
                yield key, inner


def technique_pages() -> Iterator[str]:
    """Yield the page of all techniques, from the registry."""
    from sft_hf.cli.technique_pages import list_techniques
    from sft_hf.core.recipe.registry import load_component

    grouped: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for page in list_techniques():
        group = load_component("techniques", page.name).__module__.split(".")[2]
        grouped.setdefault(group, []).append(page)
    yield "# Technique reference"
    yield ""
    yield "Generated from the code; `sft-hf techniques NAME` prints the same. See also [techniques](../techniques.md)."
    yield ""
    yield "A technique may claim a role, such as choosing the weights to evaluate. Two techniques with the same claim"
    yield "cannot be combined."
    yield ""
    for group, pages in grouped.items():
        yield f"## {GROUPS.get(group, group.capitalize())}"
        yield ""
        for page in pages:
            yield from one_technique(page)


def one_technique(page: Any) -> Iterator[str]:
    """Yield the section of one technique."""
    yield f"### `{page.name}`"
    yield ""
    yield page.summary
    yield ""
    if page.details:
        yield page.details.replace("``", "`")
        yield ""
    yield f"- Paper: {page.paper}"
    tasks = ", ".join(page.modalities)
    if page.needs_items and "speech" in page.modalities:
        tasks += " (models with a decoder, such as Whisper; not CTC)"
    if page.needs_head and "speech" in page.modalities:
        tasks += " (CTC; models with a decoder have no new head)"
    yield f"- Tasks: {tasks}"
    if page.claims:
        yield f"- Claims: {', '.join(f'`{claim}`' for claim in page.claims)}"
    for name, both in page.rivals.items():
        yield f"- Not with `{name}`: both {both}"
    for name, reason in page.excluded.items():
        yield f"- Not with `{name}`: {' '.join(reason.split())}"
    yield ""
    if page.settings:
        yield "| setting | default | description |"
        yield "|---|---|---|"
        for setting in page.settings:
            yield f"| `{setting.name}` | {cell(code(setting.default))} | {cell(setting.description)} |"
        yield ""


def recipe_pages() -> Iterator[str]:
    """Yield the page of the recipes that come with the package: header and content of each file."""
    yield "# Included recipes"
    yield ""
    yield "Each file states what it trains, the command, and the measured result with hardware and date."
    yield ""
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start = next(number for number, line in enumerate(lines) if not line.startswith("#"))
        header = [line[1:].strip() for line in lines[:start] if "yaml-language-server" not in line]
        body = [line for line in header[1:] if "accelerate launch" not in line]
        yield f"## `{path.stem}`"
        yield ""
        yield f"**{header[0]}**"
        yield ""
        yield from (line.replace("<", "&lt;") for line in body)
        yield ""
        yield "```yaml"
        yield from lines[start:]
        yield "```"
        yield ""


def command_pages() -> Iterator[str]:
    """Yield the page of all commands, from their help."""
    from sft_hf.cli import ENVIRONMENT, cli

    yield "# Commands"
    yield ""
    yield (
        "Generated from `sft-hf COMMAND --help`. Every command also takes `--quiet` (warnings and results only) and "
        "`--json` (one JSON value on standard output, errors included)."
    )
    yield ""
    for name, command in cli.commands.items():
        yield f"## `sft-hf {name}`"
        yield ""
        usage = command.collect_usage_pieces(click.Context(command, info_name=name))
        yield f"```text\nsft-hf {name} {' '.join(usage)}\n```"
        yield ""
        yield from help_text(command.help or "")
        rows = [
            (", ".join(f"`{option}`" for option in parameter.opts), parameter)
            for parameter in command.params
            if isinstance(parameter, click.Option) and not {"--quiet", "--json"} & set(parameter.opts)
        ]
        if rows:
            yield "| option | description |"
            yield "|---|---|"
            for options, parameter in rows:
                yield f"| {options} | {cell(parameter.help or '')} |"
            yield ""
    yield "## Environment variables"
    yield ""
    yield "| variable | meaning |"
    yield "|---|---|"
    for line in ENVIRONMENT.splitlines()[2:]:
        variable, meaning = line.split(maxsplit=1)
        yield f"| `{variable}` | {cell(meaning)} |"


def help_text(text: str) -> Iterator[str]:
    """Yield a command's help as Markdown: paragraphs that click leaves as they are become code blocks."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.lstrip().startswith("\b"):
            yield "```text"
            yield from (line.strip() for line in paragraph.lstrip().removeprefix("\b").strip("\n").splitlines())
            yield "```"
        else:
            yield " ".join(paragraph.split())
        yield ""


def api_page() -> Iterator[str]:
    """Yield the page of the public names of the package, documented by their docstrings."""
    import sft_hf

    yield "# Python API reference"
    yield ""
    yield "Everything that `import sft_hf` offers. Other modules are internal and may change without notice."
    yield ""
    for name in sft_hf.__all__:
        thing = getattr(sft_hf, name)
        kind = "exception" if isinstance(thing, type) and issubclass(thing, Exception) else "class"
        yield f"## `{name}`"
        yield ""
        yield "```{eval-rst}"
        yield f".. auto{kind if isinstance(thing, type) else 'function'}:: sft_hf.{name}"
        if isinstance(thing, type) and issubclass(thing, BaseModel):
            yield "   :no-index:"  # its fields are the recipe's keys, which have their own page
        elif isinstance(thing, type) and not issubclass(thing, BaseException):
            yield "   :members:"
        yield "```"
        yield ""


PAGES = {
    "api": api_page,
    "recipe_keys": recipe_keys,
    "techniques": technique_pages,
    "recipes": recipe_pages,
    "commands": command_pages,
}


def write_pages(app: Any) -> None:
    """Write every generated page into the source folder; a page that has not changed is not touched."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    for name, lines in PAGES.items():
        path, text = folder / f"{name}.md", "\n".join(lines()) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
