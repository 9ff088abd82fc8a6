"""Which data files a path means: a file, a pattern, a folder of files, a folder of the library datasets, or a dataset's address."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from jaxalign import untrusted
from jaxalign.data import hub_datasets
from jaxalign.data.rejections import DataError

_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_SUFFIXES = tuple(name + packed for name in _FORMATS for packed in ("", ".gz", ".bz2", ".xz"))
# Files of Hugging Face folders that describe the data.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval)(?:[^a-z]|$)")
_BLOCK = 1 << 20


class NoFileError(DataError):
    """An error for a path or a pattern that means no file."""


def expand(path: str | os.PathLike[str]) -> list[str]:
    """Returns the files that a path means, sorted; an address of a dataset stands for itself.

    Raises:
      DataError: no file matches, or a folder holds no data files, or those of several splits.
    """
    given = os.fspath(path)
    if hub_datasets.is_address(given):
        return [given]
    place = os.path.expanduser(given)
    if os.path.isdir(place):
        return _of_folder(place)
    matches = [place] if os.path.exists(place) else sorted(glob.glob(place))
    if not matches:
        raise NoFileError(f"No file matches {given!r}")
    return matches


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path means any files; an address of a dataset is assumed to exist."""
    given = os.fspath(path)
    place = os.path.expanduser(given)
    return hub_datasets.is_address(given) or os.path.exists(place) or bool(glob.glob(place))


def absolute(path: str) -> str:
    """Returns the path from the root of the file system; an address stays as it is."""
    if "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


def update_digest(digest: Any, path: str) -> None:
    """Adds the content of a file, or the rows of a dataset, to a digest."""
    if hub_datasets.is_address(path):
        for element in hub_datasets.rows(path):
            digest.update(f"{element.text}\n".encode())
        return
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)


def _of_folder(folder: str) -> list[str]:
    entries = sorted(os.listdir(folder))
    if "dataset_dict.json" in entries:
        splits = untrusted.read_json_object(os.path.join(folder, "dataset_dict.json")).get("splits")
        first = splits[0] if isinstance(splits, list) and splits else "SPLIT"
        named = ", ".join(map(str, splits)) if isinstance(splits, list) else "several"
        raise DataError(
            f"{folder} holds the splits {named}; give the folder of one of them: {os.path.join(folder, str(first))}."
        )
    if "state.json" in entries:
        return _saved_by_datasets(folder)
    names = [
        name
        for name in entries
        if name.endswith(_SUFFIXES) and name not in _DESCRIPTIONS and not name.startswith(".")
    ]
    paths = [
        path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)
    ]
    if not paths:
        folders = [name for name in entries if os.path.isdir(os.path.join(folder, name))]
        inside = f" (it holds the folders {', '.join(folders[:5])})" if folders else ""
        raise DataError(
            f"The folder {folder} holds no data files{inside}; files end in {', '.join(_FORMATS)}, or these and .gz, .bz2, .xz."
        )
    splits = {match[1] for name in names if (match := _SPLIT.search(name.lower()))}
    if len(splits) > 1:
        some = min(splits)
        raise DataError(
            f"The folder {folder} holds files of the splits {', '.join(sorted(splits))}, which are not read together; name those of one: "
            f"{os.path.join(folder, f'*{some}*')}."
        )
    return paths


def _saved_by_datasets(folder: str) -> list[str]:
    """Returns the Arrow files of a folder that `Dataset.save_to_disk` wrote."""
    state: dict[str, Any] = untrusted.read_json_object(os.path.join(folder, "state.json"))
    listed = state.get("_data_files")
    names = [
        untrusted.file_name(entry.get("filename")) if isinstance(entry, dict) else None
        for entry in (listed if isinstance(listed, list) else [])
    ]
    found = [name for name in names if name is not None]
    if not found or len(found) < len(names):
        raise DataError(
            f"{os.path.join(folder, 'state.json')} does not list Arrow files of that folder; save the dataset again: "
            "dataset.save_to_disk(FOLDER)."
        )
    return [os.path.join(folder, name) for name in found]
