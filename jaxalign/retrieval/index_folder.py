"""The folder of an index as an object: plain arrays, JSON, and the vocabulary with the tokens of the identifiers.

index.json          settings, blocks of tokens, statistics, the shape of every array
items.jsonl         the items, with their identifiers as text
train.jsonl         training records, query -> identifier
vocabulary.model    the SentencePiece model
*.npy               vectors, identifiers, centroids, codebooks, ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files, untrusted
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.plain_arrays import read_array
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.vocabularies import SentencePieceVocabulary, Vocabulary, vocabulary_from_dict
from jaxalign.errors import UserError
from jaxalign.retrieval.identifiers import Block, Identifiers, token_ids
from jaxalign.retrieval.items import Items, read_items
from jaxalign.runs.typed_json import JsonReader

INDEX_FILE, ITEMS_FILE = "index.json", "items.jsonl"
TRAIN_FILE, VALIDATION_FILE = "train.jsonl", "validation.jsonl"
VOCABULARY_FILE = "vocabulary.model"
VECTORS, IDENTIFIERS, CENTROIDS = "vectors", "identifiers", "centroids"
MEAN, COMPONENTS = "mean", "components"
_VERSION = 1
_MOST = 1 << 31
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")


@dataclasses.dataclass(frozen=True)
class Index:
    """An index.

    Attributes:
      items: the items, with their lines.
      blocks: the tokens of every position.
      arrays: `vectors` [items, size], `identifiers` [items, positions], `centroids` [clusters, size] if there are clusters, those
        of the quantizer, and `mean` and `components` if the vectors are principal components.
      vocabulary: the vocabulary with the tokens of the identifiers.
      settings: how the index was made, as JSON.
      statistics: see `code_statistics`, and counts of items and queries.
      training, validation: records with `prompt` (the query), `response` (the identifier) and `item`.
      path: the folder.
    """

    items: Items
    blocks: Sequence[Block]
    arrays: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    settings: Mapping[str, Any]
    statistics: Mapping[str, Any]
    training: Sequence[Mapping[str, Any]] = ()
    validation: Sequence[Mapping[str, Any]] = ()
    path: str = "index"

    @property
    def vectors(self) -> np.ndarray:
        """The vectors of the items, float32 [items, size]."""
        return self.arrays[VECTORS]

    @property
    def identifiers(self) -> Identifiers:
        """The identifiers, one number per position, [items, positions]."""
        return self.arrays[IDENTIFIERS]

    @property
    def tokens(self) -> Identifiers:
        """The token ids of the identifiers, without EOS, [items, positions]."""
        return token_ids(self.identifiers, self.blocks)

    @property
    def recorded_vocabulary(self) -> RecordedVocabulary:
        """The description of the vocabulary, for comparison with that of a run."""
        return RecordedVocabulary({**self.vocabulary.to_dict(), "path": VOCABULARY_FILE}, self.path)

    @property
    def fingerprint(self) -> str:
        """`fingerprint` of the items and their identifiers."""
        return fingerprint(self.items, self.identifiers)

    def write(self, folder: str | Path) -> None:
        """Writes the folder, which takes its name when it is complete, in place of a folder that has the name."""
        folder = Path(folder).expanduser()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            new = Path(temporary) / "index"
            new.mkdir()
            for name, array in self.arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
            vocabulary = {**self.vocabulary.to_dict(), "path": VOCABULARY_FILE}
            if isinstance(self.vocabulary, SentencePieceVocabulary):
                files.write_bytes(new / VOCABULARY_FILE, self.vocabulary.model)
            _write_lines(new / ITEMS_FILE, self.items.fields)
            _write_lines(new / TRAIN_FILE, self.training)
            if self.validation:
                _write_lines(new / VALIDATION_FILE, self.validation)
            content = {
                "version": _VERSION,
                "fingerprint": self.fingerprint,
                "settings": self.settings,
                "statistics": self.statistics,
                "vocabulary": vocabulary,
                "blocks": [block.to_json() for block in self.blocks],
                "arrays": {name: list(array.shape) for name, array in self.arrays.items()},
            }
            files.write_text(new / INDEX_FILE, json.dumps(content, indent=1) + "\n")
            files.replace_folder(new, folder)


def fingerprint(items: Items, identifiers: Identifiers) -> str:
    """Returns twelve hexadecimal digits that differ between indexes with other items or identifiers."""
    found = hashlib.sha256(np.ascontiguousarray(identifiers, np.int32).tobytes())
    found.update(json.dumps(list(items.ids)).encode())
    return found.hexdigest()[:12]


def read_index(path: str | Path) -> Index:
    """Reads the folder of an index. Nothing in it is executed or unpickled.

    Raises:
      UserError: a file is missing or malformed, or the arrays, items and tokens do not fit together.
    """
    folder = Path(path).expanduser()
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"{folder} is no index: it has no {INDEX_FILE}; `jaxalign index` makes one")
    content = untrusted.read_json_object(folder / INDEX_FILE, inside=folder)
    reader = JsonReader(content, str(folder / INDEX_FILE))
    if content.get("version") != _VERSION:
        raise reader.wrong("version", str(_VERSION))
    arrays = {
        name: _array(folder, name, shape, reader)
        for name, shape in (reader.optional_object("arrays") or {}).items()
    }
    for name in (VECTORS, IDENTIFIERS):
        if name not in arrays or arrays[name].ndim != 2:
            raise reader.wrong("arrays", f"an object with {name} of two dimensions")
    vocabulary = reader.optional_object("vocabulary") or {}
    if untrusted.file_name(vocabulary.get("path")) is None:
        raise reader.wrong("vocabulary", "an object with the name of a file")
    untrusted.read_bytes(_inside(folder, VOCABULARY_FILE), 256 << 20, inside=folder)
    items = read_items(str(_inside(folder, ITEMS_FILE)))
    index = Index(
        items,
        _blocks(content.get("blocks"), reader),
        arrays,
        vocabulary_from_dict({**vocabulary, "path": VOCABULARY_FILE}, str(folder)),
        reader.optional_object("settings") or {},
        reader.optional_object("statistics") or {},
        _records(folder, TRAIN_FILE),
        _records(folder, VALIDATION_FILE),
        str(folder),
    )
    _check(index, reader)
    return index


def _check(index: Index, reader: JsonReader) -> None:
    """Refuses an index whose parts do not fit together."""
    rows = (len(index.items), len(index.vectors), len(index.identifiers))
    if len(set(rows)) != 1:
        raise UserError(
            f"{reader.where}: there are {rows[0]} items, {rows[1]} vectors and {rows[2]} identifiers; make the index again"
        )
    for row, fields in enumerate(index.items.fields):
        if not isinstance(fields.get("identifier"), str):
            raise UserError(f"{index.items.where(row)} has no identifier; make the index again")
    tokens = index.tokens
    if len(np.unique(tokens, axis=0)) != len(tokens):
        raise UserError(f"{reader.where}: two items have the same identifier; make the index again")
    _check_recorded(index, reader)
    last = index.blocks[-1]
    if last.first + last.size > index.vocabulary.size:
        raise UserError(
            f"{reader.where}: the blocks end at token {last.first + last.size}, but the vocabulary has {index.vocabulary.size}"
        )


def _check_recorded(index: Index, reader: JsonReader) -> None:
    """Refuses an index whose items, identifiers and tokens are not those with which it was written: its results would be other items."""
    if reader.text("fingerprint", None, required=True) != index.fingerprint:
        raise UserError(
            f"{reader.where}: the fingerprint is not that of the items and identifiers, of which some were exchanged; make the index again"
        )
    for row, (fields, tokens) in enumerate(zip(index.items.fields, index.tokens, strict=True)):
        if index.vocabulary.decode(tokens.tolist()) != fields["identifier"]:
            raise UserError(
                f"{index.items.where(row)}: {fields['identifier'][:60]!r} is not the text of its identifier; make the index again"
            )


def _array(folder: Path, name: str, shape: Any, reader: JsonReader) -> np.ndarray:
    plain = set(name) <= _NAME_CHARACTERS and not name.startswith(".") and len(name) < 128
    sized = isinstance(shape, list) and all(type(n) is int and 0 <= n < _MOST for n in shape)
    if not plain or not sized:
        raise reader.wrong("arrays", "an object from names of arrays to their shapes")
    array = read_array(folder / f"{name}.npy", inside=folder)
    if list(array.shape) != shape:
        raise UserError(f"{folder / name}.npy has shape {list(array.shape)}, not {shape}")
    wanted = np.int32 if name == IDENTIFIERS else np.float32
    if array.dtype != wanted or not np.isfinite(array).all():
        raise UserError(f"{folder / name}.npy must hold finite numbers of dtype {np.dtype(wanted)}")
    return array


def _blocks(value: Any, reader: JsonReader) -> list[Block]:
    fields = {"letter": str, "size": int, "first": int}
    if not isinstance(value, list) or not value or len(value) > 64:
        raise reader.wrong("blocks", "a list of blocks of tokens")
    blocks = []
    end = 3  # after PAD, EOS and unknown
    for each in value:
        if not isinstance(each, dict) or {k: type(v) for k, v in each.items()} != fields:
            raise reader.wrong("blocks", "a list of objects with letter, size and first")
        block = Block(**each)
        if block.first < end or not 0 < block.size < _MOST or block.first > _MOST:
            raise reader.wrong("blocks", "a list of blocks that share no token")
        end = block.first + block.size
        blocks.append(block)
    return blocks


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    if not (folder / name).is_file():
        return []
    path = _inside(folder, name)
    records = []
    for line, record in read_json_objects(path):
        item = record.get("item")
        texts = isinstance(record.get("prompt"), str) and isinstance(record.get("response"), str)
        if not texts or isinstance(item, bool) or not isinstance(item, str | int):
            raise UserError(f"{path}:{line}: a record has the texts prompt and response, and item")
        records.append(record)
    return records


def _inside(folder: Path, name: str) -> Path:
    """Returns the path of a file, which must be a regular one in the folder."""
    try:
        untrusted.open_regular(folder / name, inside=folder).close()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read: {error.strerror}") from error
    return folder / name


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.write_text(path, text)
