"""Datasets of the Hugging Face Hub as sources of records, by address, through the optional library datasets.

`hf_dataset://OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`; the split is `train` by default and may be a part such as `train[:1000]`.
The library's cache, its offline mode and its login are those of its own environment variables (HF_HOME, HF_HUB_OFFLINE ...).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxalign.data import table_files
from jaxalign.data.elements import Element
from jaxalign.data.rejections import DataError
from jaxalign.errors import first_line

SCHEME = "hf_dataset://"
_FORM = f"{SCHEME}OWNER/NAME[@REVISION][/CONFIG][:SPLIT]"
_NAME = r"[A-Za-z0-9][\w.-]*"
_ADDRESS = re.compile(
    rf"{SCHEME}(?P<name>{_NAME}/{_NAME})(?:@(?P<revision>refs/[\w.-]+/[\w.-]+|[\w.-]+))?"
    r"(?:/(?P<config>[\w.-]+))?(?::(?P<split>.+))?",
    re.ASCII,
)
# Earlier versions of the library can run code of a dataset.
_WITHOUT_SCRIPTS = 4


class Address(NamedTuple):
    """A dataset of the Hub: its name, its configuration and revision (None for the default ones), and a split."""

    name: str
    config: str | None
    revision: str | None
    split: str


def is_address(path: str) -> bool:
    """Returns whether a path is the address of a dataset."""
    return path.startswith(SCHEME)


def parse(address: str) -> Address:
    """Returns the parts of an address.

    Raises:
      DataError: it does not have the form of an address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise DataError(
            f"{address!r} is no address of a dataset; its form is {_FORM}, for example {SCHEME}trl-lib/kto-mix-14k:train."
        )
    return Address(match["name"], match["config"], match["revision"], match["split"] or "train")


def rows(address: str) -> Iterator[Element]:
    """Yields the rows of a dataset, in its order.

    Raises:
      DataError: the library is missing or too old, or the dataset cannot be read; the message says what to do.
    """
    dataset = _load(address)
    # Arrow tables leave out the library's decoding of images and sound.
    tables = dataset.with_format("arrow").iter(batch_size=table_files.ROWS)
    yield from table_files.rows_of(batch for table in tables for batch in table.to_batches())


# The rows are read several times, and every load asks the Hub for the latest revision.
@functools.lru_cache(maxsize=4)
def _load(address: str) -> Any:
    found = parse(address)
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{address} needs the library datasets: pip install 'datasets>={_WITHOUT_SCRIPTS}'; or give a data file."
        ) from None
    version = str(datasets.__version__)
    if int(version.partition(".")[0]) < _WITHOUT_SCRIPTS:
        raise DataError(
            f"{address}: datasets {version} can run code of a dataset, so it is not used: pip install 'datasets>={_WITHOUT_SCRIPTS}'."
        )
    if os.path.exists(found.name):
        raise DataError(
            f"{address}: the library would read the folder {found.name} of the current folder instead; work in another folder, or give its "
            "files by path."
        )
    try:
        return datasets.load_dataset(
            found.name, found.config, split=found.split, revision=found.revision
        )
    except Exception as error:
        # The library raises errors of many kinds, among them those of its network client.
        raise DataError(f"{address} cannot be read: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """Returns the reason and the remedy in one line."""
    reason = first_line(error).rstrip(".") or type(error).__name__
    text = str(error)
    if "scripts are no longer supported" in text:
        remedy = "jaxalign runs no dataset scripts; the Hub keeps most such datasets as Parquet: add @refs/convert/parquet to the name"
    elif "Offline" in text or "Connection" in text or "Connection" in type(error).__name__:
        remedy = (
            "without network only datasets in the library's cache are read: load it once with network (HF_HUB_OFFLINE unset), or give "
            "a data file"
        )
    elif "Config name is missing" in text or "BuilderConfig" in text:
        remedy = f"name a configuration: {_FORM}"
        names = re.search(r"\[.*?\]", text, re.DOTALL)
        reason = f"{reason}{f' {names[0]}' if names and names[0] not in reason else ''}"
    elif "split" in text.lower():
        remedy = f"name a split that it has: {_FORM}"
    else:
        remedy = f"check the name and your access to it (hf auth login); the form is {_FORM}"
    return f"{' '.join(reason.split())}; {remedy}."
