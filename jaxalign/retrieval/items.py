"""Reads the items of an index, and the queries for them, from JSON Lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.rejections import DataError

ItemId = str | int


@dataclasses.dataclass(frozen=True)
class Items:
    """The items of an index.

    Attributes:
      ids: the id of every item, a text or an integer; no two are equal.
      fields: the whole line of every item.
      path: the file, for messages.
    """

    ids: Sequence[ItemId]
    fields: Sequence[Mapping[str, Any]]
    path: str = "items"

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, index: int) -> str:
        """Returns words that name an item in a message."""
        return f"{self.path}, item {self.ids[index]!r}"

    def texts(self) -> list[str]:
        """Returns the field `text` of every item.

        Raises:
          DataError: an item has none.
        """
        for index, fields in enumerate(self.fields):
            if not isinstance(fields.get("text"), str) or not fields["text"].strip():
                raise DataError(f'{self.where(index)} has no text; add "text" to its line')
        return [fields["text"] for fields in self.fields]


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries for items.

    Attributes:
      texts: the queries.
      items: the item that each query asks for; None where the file names none.
      path: the file, for messages.
    """

    texts: Sequence[str]
    items: Sequence[ItemId | None]
    path: str = "queries"

    def __len__(self) -> int:
        return len(self.texts)


def read_items(path: str) -> Items:
    """Reads items, one a line: `{"item": "...", ...}`.

    Raises:
      DataError: a line has no id, two have the same, or there are none; the message names the line.
    """
    seen: dict[ItemId, int] = {}
    fields = []
    for line, record in read_json_objects(path):
        item = _item_of(record, f"{path}:{line}")
        if item in seen:
            raise DataError(
                f"{path}:{line}: the item {item!r} is that of line {seen[item]}; every item has one line, and its queries stand in the "
                "file of queries"
            )
        seen[item] = line
        fields.append(record)
    if not fields:
        raise DataError(f'{path} holds no items; give lines such as {{"item": "a", "text": "..."}}')
    return Items(list(seen), fields, path)


def read_queries(path: str, *, need_items: bool) -> Queries:
    """Reads queries, one a line: `{"query": "...", "item": "..."}`; a list of queries for an item is allowed.

    Raises:
      DataError: a line has no query, an empty one or (if needed) no item, or the file holds none; the message names the line.
    """
    texts: list[str] = []
    items: list[ItemId | None] = []
    for line, record in read_json_objects(path):
        where = f"{path}:{line}"
        item = _item_of(record, where) if need_items or "item" in record else None
        for text in _texts_of(record, where):
            texts.append(text)
            items.append(item)
    if not texts:
        raise DataError(f'{path} holds no queries; give lines such as {{"query": "..."}}')
    return Queries(texts, items, path)


def _texts_of(record: Mapping[str, Any], where: str) -> Iterator[str]:
    given = record.get("query", record.get("prompt"))
    for text in given if isinstance(given, list) and given else [given]:
        if not isinstance(text, str):
            raise DataError(f'{where}: has no query; a line is {{"query": "...", "item": ...}}')
        if not text.strip():
            raise DataError(f"{where}: the query is empty; remove the line")
        yield " ".join(text.split())


def _item_of(record: Mapping[str, Any], where: str) -> ItemId:
    item = record.get("item")
    if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
        raise DataError(f'{where}: "item" must be a text or an integer, not {item!r}')
    return item
