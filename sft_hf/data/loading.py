"""From a recipe's data section to the splits it names: a file, a folder, or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from sft_hf.data import media
from sft_hf.data.files import TABLE_SUFFIXES, iter_rows, read_table, separator_hint, table_features, table_stem
from sft_hf.data.hub import Data, hub_name, load_from_hub, refuse
from sft_hf.data.segments import segment_names, with_segments
from sft_hf.data.speech_layouts.nemo import manifest_names
from sft_hf.data.speech_layouts.recognise import corpus_layout, folder_layout
from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from sft_hf.data.speech_layouts.rows import Layout
    from sft_hf.recipe import DataSection
    from sft_hf.sources import Source

ROLES = ("train", "validation", "test")
ROW_ID = "row_id"
"""Position of a row in its file or split, before anything was held out or left away.

Rows are counted from 0 everywhere, as pandas and `datasets` do: in messages, reports, predictions and outputs. Where a
message names a line of a text file instead, it says "line", counted from 1 as editors do."""

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""Names that stand for each other, the first that is there wins; an exact match comes before them all."""

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True)
class Splits:
    """The data of a run by role ("train", "validation", "test"; absent ones are absent).

    `where` says for messages where a role's rows come from: "train.csv" or "org/name [train]". `notes` are sentences
    about what was decided on the way, for the log. `revision` is the commit of a Hub data set; None where it is not
    known (streams) or there is none.
    """

    by_role: dict[str, Data]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None


def load_splits(section: DataSection, source: Source, columns: Mapping[str, str]) -> Splits:
    """Load the splits that the data section names; nothing is held out or limited yet.

    `columns` maps the keys of the recipe that name a column to the columns, which have to be there.

    A file is train. A folder is read by `data_files`, else as what `save_to_disk` wrote, else by file names: train.csv,
    valid.jsonl, test-00000-of-00002.parquet, or train/metadata.csv where rows name files, else, for a task that reads
    images, as folders named after their classes (see `sft_hf.data.media`). A split may be missing
    where the section has the default name for it. Paths in a column of images or recordings are made absolute; nothing
    of these is decoded.
    Every whole split has a column `row_id` (see `ROW_ID`); one that the data brings along is replaced. With
    `streaming`, train is an IterableDataset without `row_id`; the others, which are scored as a whole, are read whole.

    Raises DataError for files, splits or columns that are missing or cannot be used, StorageError for the disk.
    """
    files = [column for key, column in columns.items() if key in media.MEDIA_KEYS]
    if source.path is None:
        by_name, commit = load_from_hub(section, source)
        loaded = replace(_by_name(section, by_name, source.name, hub_name(source)), revision=commit)
    elif source.path.is_dir():
        loaded = _from_folder(section, source.path, files, "data.image_column" in columns)
    elif section.data_files:
        raise DataError(f"data.data_files picks files of a folder, and {source.path} is a file; remove it")
    else:
        loaded = Splits({}, {"train": source.path.name})
        loaded.by_role["train"] = _from_files([source.path], section, "train", files, loaded.notes)
    by_role = {}
    for role, data in loaded.by_role.items():
        require_columns(data, columns, loaded.where[role])
        by_role[role] = data if isinstance(data, IterableDataset) else _number(data, loaded.where[role])
    return replace(loaded, by_role=by_role)


def require_columns(dataset: Data, columns: Mapping[str, str], where: str) -> None:
    """Check that the columns are there. `columns` maps a key of the recipe, for the message, to a column.

    Raises DataError.
    """
    known = dataset.column_names
    if known is None:  # a stream that tells its columns only by its rows
        known = list(next(iter(dataset), {}))
    known = [name for name in known if name != ROW_ID]
    for key, column in columns.items():
        if column not in known:
            raise DataError(
                f"{where}: no column {column!r} ({key}); {separator_hint(known) or did_you_mean(column, known)}"
            )


def _number(dataset: Dataset, where: str) -> Dataset:
    if not len(dataset):
        raise DataError(f"{where}: holds no rows")
    dataset = dataset.with_format(None)
    if ROW_ID in dataset.column_names:
        dataset = dataset.remove_columns(ROW_ID)
    return dataset.add_column(ROW_ID, np.arange(len(dataset), dtype=np.int64))


# --- which split serves which role ---------------------------------------------------------------------------


def _choose(
    section: DataSection, available: Sequence[str], what: str, advice: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Return {role: name of the split}, and notes. Raises DataError for a split that is not there."""
    wanted = {role: getattr(section, f"{role}_split") for role in ROLES}
    chosen = {}
    for role, name in wanted.items():
        if name is None:
            continue
        same = VALIDATION_NAMES if name in VALIDATION_NAMES else ()
        found = next((other for other in (name, *same) if other in available), None)
        if found is not None:
            chosen[role] = found
        elif role == "train" or name != role:
            hint = did_you_mean(name, available)
            raise DataError(f"{what}: no split {name!r} (data.{role}_split); {hint}{advice}")
    return _resolve_conflicts(chosen, wanted)


def _resolve_conflicts(chosen: dict[str, str], wanted: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """One split must not serve two roles; a role that only has its default name gives way."""
    notes = []
    for pair in combinations(ROLES, 2):
        if pair[0] not in chosen or chosen[pair[0]] != chosen.get(pair[1]):
            continue
        gives_way = [role for role in pair if wanted[role] == role]
        if len(gives_way) != 1 or gives_way == ["train"]:
            keys = " and ".join(f"data.{role}_split" for role in pair)
            raise DataError(
                f"{keys} both name the split {chosen[pair[0]]!r}; name another, or null to hold out of train"
            )
        (role,) = gives_way
        (other,) = set(pair) - {role}
        notes.append(f"{role}: not the split {chosen.pop(role)!r}, which data.{other}_split makes {other}")
    return chosen, notes


def _unused(chosen: Mapping[str, str], available: Sequence[str]) -> list[str]:
    rest = [name for name in available if name not in chosen.values()]
    return [f"not used: split{'s' * (len(rest) > 1)} {', '.join(rest)}"] if rest else []


# --- local files ---------------------------------------------------------------------------------------------


def _from_files(
    paths: list[Path], section: DataSection, role: str, files: Sequence[str], notes: list[str] | None = None
) -> Data:
    """Read the parts of a split; `files` are the columns that hold paths, relative to the part's folder.

    `notes` gets what is to be said about them.
    """
    options: dict[str, Any] = {
        "delimiter": section.delimiter,
        "quote_char": section.quote_char,
        "skip_lines": section.skip_lines,
    }
    if section.streaming and role == "train":
        if _reads_recordings(section, files):
            _refuse_segments(paths[0], section, options)
        features = [_name_features(table_features(path, **options), section, files) for path in paths]
        if any(other != features[0] for other in features):
            raise DataError(f"{paths[0]} and its other parts differ in their columns; one split needs the same in all")
        first = next(iter_rows(paths[0], batch_size=1, **options))
        other = _other_names(list(first), section, files)
        names = {"paths": [str(path) for path in paths], "options": options, "files": tuple(files), "other": other}
        return media.undecoded(IterableDataset.from_generator(_stream, features=features[0], gen_kwargs=names))
    parts = []
    for path in paths:
        table = media.undecoded(_name_files(read_table(path, **options), section, files))
        table = media.absolute_paths(table, files, path.parent)
        if _reads_recordings(section, files):
            table, said = with_segments(table, section.audio_column, section, path.name)
            if notes is not None:
                notes += said
        parts.append(table)
    for path, part in zip(paths, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise DataError(
                f"{path}: columns {', '.join(part.column_names)}, but {paths[0].name} has "
                f"{', '.join(parts[0].column_names)}; parts of one split need the same columns"
            )
    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (ValueError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{paths[0]} and its other parts do not fit together: {reason}") from error


def _reads_recordings(section: DataSection, files: Sequence[str]) -> bool:
    return bool(files) and section.audio_column in files and section.image_column not in files


def _other_names(names: Sequence[str], section: DataSection, files: Sequence[str]) -> dict[str, str]:
    """Return {as it is called: as it should be called} of the columns of a table that tasks know by another name."""
    manifest = manifest_names(names, section) if _reads_recordings(section, files) else {}
    return manifest or media.file_column(names, files)


def _name_files(table: Dataset, section: DataSection, files: Sequence[str]) -> Dataset:
    return table.rename_columns(_other_names(table.column_names, section, files))


def _name_features(
    features: datasets.Features | None, section: DataSection, files: Sequence[str]
) -> datasets.Features | None:
    if features is None:
        return None
    other = _other_names(list(features), section, files)
    return datasets.Features({other.get(name, name): feature for name, feature in features.items()})


def _refuse_segments(path: Path, section: DataSection, options: dict[str, Any]) -> None:
    """Parts of recordings are no stream: what is read as it comes would be the whole recording for each of them."""
    columns = list(next(iter_rows(path, batch_size=1, **options)))
    if found := segment_names(columns, section, path.name):
        raise DataError(
            f"{path}: data.streaming does not read parts of recordings (column {found[0]!r}); set data.streaming: "
            "false, or data.segment_columns: none if each file is one row"
        )


def _stream(
    paths: list[str], options: dict[str, Any], files: tuple[str, ...], other: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for path in paths:
        for batch in iter_rows(path, **options):
            batch = {other.get(name, name): values for name, values in batch.items()}
            names = list(batch)
            for column in set(files) & set(names):
                batch[column] = [media.absolute_path(value, Path(path).parent) for value in batch[column]]
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def _from_folder(section: DataSection, folder: Path, files: Sequence[str], images: bool) -> Splits:
    recordings = _reads_recordings(section, files)
    if section.data_files:
        return _from_mapping(section, folder, section.data_files, files)
    if recordings and (layout := corpus_layout(folder, section)):
        return _from_layout(section, folder, layout)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_saved(section, folder)
    listing = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    groups: dict[str, list[Path]] = {}
    for name in listing:
        stem = table_stem(name)
        if stem is not None and (folder / name).is_file():
            shard = _SHARD.fullmatch(stem)
            groups.setdefault(shard["split"] if shard else stem, []).append(folder / name)
    if files:
        groups |= {name: [table] for name, table in media.metadata_tables(folder, section.train_split).items()}
    if images and section.train_split not in groups and (found := _from_image_folder(section, folder)):
        return found
    if recordings and section.train_split not in groups:
        names = [name for role in ROLES if (name := getattr(section, f"{role}_split"))]
        if layout := folder_layout(folder, section, [*names, *VALIDATION_NAMES]):
            return _from_layout(section, folder, layout)
    held = did_you_mean("", listing).removeprefix("Valid: ")
    endings = ", ".join(TABLE_SUFFIXES[:-1])
    beside = ", or a metadata.csv (file_name, transcription)" if files and not images else ""
    advice = f"; a split is a file named after it ({endings}){beside}, or see data.data_files; the folder holds: {held}"
    chosen, notes = _choose(section, list(groups), str(folder), advice)
    return _read_groups(section, chosen, {name: groups[name] for name in chosen.values()}, notes, files)


def _from_image_folder(section: DataSection, folder: Path) -> Splits | None:
    wanted = [name for role in ROLES if (name := getattr(section, f"{role}_split"))]
    found = media.image_folder_splits(folder, [*wanted, *VALIDATION_NAMES])
    if found is None:
        return None
    chosen, notes = ({"train": ""}, []) if "" in found else _choose(section, list(found), str(folder))
    splits = Splits({}, {}, notes + _unused(chosen, list(found)))
    for role, name in chosen.items():
        table, left_out = media.read_image_folder(found[name], section.image_column, section.target_column)
        splits.notes.extend(left_out)
        splits.by_role[role] = table.to_iterable_dataset() if section.streaming and role == "train" else table
        splits.where[role] = f"{folder.name}/{name}".rstrip("/")
    return splits


def _from_layout(section: DataSection, folder: Path, layout: Layout) -> Splits:
    """Read a folder whose layout is known."""
    chosen, notes = _choose(section, list(layout.splits), f"{folder} ({layout.name})")
    splits = Splits({}, {}, [f"{folder}: read as {layout.name}", *layout.notes, *notes])
    for role, name in chosen.items():
        table, left_out = layout.splits[name]()
        splits.notes.extend(left_out)
        splits.by_role[role] = table.to_iterable_dataset() if section.streaming and role == "train" else table
        splits.where[role] = f"{folder.name}/{name}"
    splits.notes.extend(_unused(chosen, list(layout.splits)))
    return splits


def _from_mapping(section: DataSection, folder: Path, data_files: Mapping[str, str], files: Sequence[str]) -> Splits:
    chosen, notes = _choose(section, list(data_files), "data.data_files")
    groups = {}
    for name in chosen.values():
        pattern = data_files[name]
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise DataError(f"data.data_files: {name}: {pattern!r} is not inside {folder}; name a file of that folder")
        found = _glob(folder, pattern)
        if not found:
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            raise DataError(f"data.data_files: {name}: no file {pattern!r} in {folder}; {did_you_mean(pattern, files)}")
        groups[name] = found
    return _read_groups(section, chosen, groups, notes + _unused(chosen, list(data_files)), files, ordered=True)


def _glob(folder: Path, pattern: str) -> list[Path]:
    if (folder / pattern).is_file():  # a name may hold characters that mean something in a pattern
        return [folder / pattern]
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except ValueError:  # no valid pattern, such as a**b
        return []


def _read_groups(
    section: DataSection,
    chosen: Mapping[str, str],
    groups: Mapping[str, list[Path]],
    notes: list[str],
    files: Sequence[str],
    ordered: bool = False,
) -> Splits:
    splits = Splits({}, {}, notes)
    for role, name in chosen.items():
        paths = groups[name] if ordered else _check_shards(name, groups[name])
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        splits.by_role[role] = _from_files(paths, section, role, files, splits.notes)
        # metadata.csv is every split's name for its table
        place = paths[0].parent.name + "/" if table_stem(paths[0].name) == media.METADATA else ""
        splits.where[role] = place + paths[0].name + more
    return splits


def _check_shards(name: str, paths: list[Path]) -> list[Path]:
    """Return the files of a split in order. Raises DataError if they are rivals, or if a shard is missing."""
    shards = [_SHARD.fullmatch(table_stem(path.name) or "") for path in paths]
    if len(paths) == 1 and shards[0] is None:
        return paths
    names = ", ".join(path.name for path in paths)
    numbers = sorted((int(shard["index"]), int(shard["count"])) for shard in shards if shard)
    if len(numbers) < len(paths) or len({path.suffix for path in paths}) > 1:
        raise DataError(
            f"{paths[0].parent}: several files for the split {name!r} ({names}); say which by data.data_files"
        )
    if numbers != [(index, len(paths)) for index in range(len(paths))]:
        raise DataError(f"{paths[0].parent}: shards of {name!r} are missing or mixed; there is only {names}")
    return [path for _, path in sorted(zip((int(shard["index"]) for shard in shards if shard), paths, strict=True))]


def _from_saved(section: DataSection, folder: Path) -> Splits:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        refuse(error, f"{folder}: what save_to_disk wrote here cannot be read")
    by_name = dict(saved) if isinstance(saved, datasets.DatasetDict) else {section.train_split: saved}
    return _by_name(section, by_name, folder.name, str(folder))


def _by_name(section: DataSection, by_name: Mapping[str, Data], short: str, what: str) -> Splits:
    chosen, notes = _choose(section, list(by_name), what)
    splits = Splits({}, {}, notes + _unused(chosen, list(by_name)))
    for role, name in chosen.items():
        data = media.undecoded(by_name[name])
        splits.where[role] = f"{short} [{name}]"
        if section.streaming and role == "train":
            splits.by_role[role] = data.to_iterable_dataset() if isinstance(data, Dataset) else data
        else:
            splits.by_role[role] = data if isinstance(data, Dataset) else Dataset.from_list(list(data), data.features)
    return splits
