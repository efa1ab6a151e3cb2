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
from sft_hf.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from sft_hf.data.preflight import Finding
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
    about what was decided on the way, for the log; `findings` are about the data, for log, check and report. `revision`
    is the commit of a Hub data set; None where it is not known (streams) or there is none.
    """

    by_role: dict[str, Data]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)
    revision: str | None = None
    findings: list[Finding] = field(default_factory=list)


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
        loaded = Splits({"train": _from_files([source.path], section, "train", files)}, {"train": source.path.name})
    by_role = {}
    for role, data in loaded.by_role.items():
        require_columns(data, _required(data, columns, role), loaded.where[role])
        by_role[role] = data if isinstance(data, IterableDataset) else _number(data, loaded.where[role])
    return replace(loaded, by_role=by_role)


def _required(dataset: Data, columns: Mapping[str, str], role: str) -> Mapping[str, str]:
    """The columns that a split has to have: a test without any label column is unlabelled."""
    known = dataset.column_names or []
    labels = {key: column for key, column in columns.items() if key.startswith("data.label_column")}
    if role != "test" or any(column in known for column in labels.values()):
        return columns
    return {key: column for key, column in columns.items() if key not in labels}


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


def _from_files(paths: list[Path], section: DataSection, role: str, files: Sequence[str]) -> Data:
    """Read the parts of a split; `files` are the columns that hold paths, relative to the part's folder."""
    options: dict[str, Any] = {
        "delimiter": section.delimiter,
        "quote_char": section.quote_char,
        "skip_lines": section.skip_lines,
    }
    if section.streaming and role == "train":
        features = [_name_features(table_features(path, **options), files) for path in paths]
        if any(other != features[0] for other in features):
            raise DataError(f"{paths[0]} and its other parts differ in their columns; one split needs the same in all")
        names = {"paths": [str(path) for path in paths], "options": options, "files": tuple(files)}
        return media.undecoded(IterableDataset.from_generator(_stream, features=features[0], gen_kwargs=names))
    parts = [
        media.absolute_paths(media.undecoded(_name_files(read_table(path, **options), files)), files, path.parent)
        for path in paths
    ]
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


def _name_files(table: Dataset, files: Sequence[str]) -> Dataset:
    return table.rename_columns(media.file_column(table.column_names, files))


def _name_features(features: datasets.Features | None, files: Sequence[str]) -> datasets.Features | None:
    if features is None:
        return None
    other = media.file_column(features, files)
    return datasets.Features({other.get(name, name): feature for name, feature in features.items()})


def _stream(paths: list[str], options: dict[str, Any], files: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for batch in iter_rows(path, **options):
            other = media.file_column(batch, files)
            batch = {other.get(name, name): values for name, values in batch.items()}
            names = list(batch)
            for column in set(files) & set(names):
                batch[column] = [media.absolute_path(value, Path(path).parent) for value in batch[column]]
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(names, values, strict=True))


def _from_folder(section: DataSection, folder: Path, files: Sequence[str], images: bool) -> Splits:
    if section.data_files:
        return _from_mapping(section, folder, section.data_files, files)
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
        splits.by_role[role] = _from_files(paths, section, role, files)
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
