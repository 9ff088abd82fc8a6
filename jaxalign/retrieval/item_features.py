"""Vectors of items. The sources are plug-ins, see `jaxalign.plugins` for their names; every annotator of kind `vectors` is one too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from jaxalign.annotation.annotators import annotator_names, get_annotator
from jaxalign.annotation.flat import file_identity
from jaxalign.data.candidates import Candidates
from jaxalign.data.pictures import PictureReader, check_pixels, resized
from jaxalign.data.plain_arrays import read_array
from jaxalign.data.record_fields import RecordError
from jaxalign.errors import UserError, require_range
from jaxalign.plugins import Registry, parse_spec
from jaxalign.retrieval.items import Items


class FeatureSource(Protocol):
    """Gives every item a vector."""

    def identity(self) -> Mapping[str, Any]:
        """Returns everything that the vectors depend on beside the items, as JSON."""

    def vectors(self, items: Items) -> np.ndarray:
        """Returns one vector per item, [items, size]."""


class _Function:
    """Vectors of a user's own function (lines of the items) -> one vector per item."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def identity(self) -> Mapping[str, Any]:
        return {"function": f"{self._function.__module__}.{self._name}"}

    def vectors(self, items: Items) -> np.ndarray:
        return np.asarray(self._function(list(items.fields)))


_REGISTRY: Registry[FeatureSource] = Registry("source of features", _Function)
register_features = _REGISTRY.register


def get_features(spec: str) -> FeatureSource:
    """Returns the source of a specification, such as `vector`, `array:features.npy`, `pictures`, `embedding:runs/sft`.

    Raises:
      UserError: an unknown name or setting, or an annotator that gives no vectors.
    """
    parts = parse_spec(spec)
    if parts.name in _REGISTRY:
        return _REGISTRY.build(spec)
    if parts.name in annotator_names():
        return Annotated(spec)
    if not parts.argument:
        raise UserError(
            f"no source of features named {parts.name!r}: use one of {', '.join(_REGISTRY.names())}, an annotator of vectors such as "
            "embedding:policy=RUN or sentence_encoder, or module:function"
        )
    return _REGISTRY.build(spec)


def features_for_more(
    recorded: Mapping[str, Any], given: str, where: str
) -> tuple[str, FeatureSource]:
    """Returns the source of the vectors of further items, which must be like those of an index; with its specification.

    Args:
      recorded: the settings of the index.
      given: the specification that the user gives; empty for that of the index.
      where: the index, for messages.

    Raises:
      UserError: the source is of another kind, or is a function that only the index names.
    """
    old = str(recorded.get("features"))
    name = parse_spec(old).name
    known = name in _REGISTRY or name in annotator_names()
    if not known and not given:
        raise UserError(
            f"the vectors of {where} are those of the function {old!r}, which is not called because a file names it; give "
            f"--features={old} if it is yours"
        )
    if given and (given != old if not known else parse_spec(given).name != name):
        raise UserError(
            f"the vectors of {where} are those of {old!r}, and --features is {given!r}; vectors of another kind have other clusters: "
            f"leave --features out, or give {name + ' with other settings' if known else old}"
        )
    used = given or old
    source = get_features(used)
    if isinstance(source, Annotated) and _without_paths(source.identity()) != _without_paths(
        recorded.get("source")
    ):
        raise UserError(
            f"the vectors of {where} are those of {old!r}, and {used!r} gives others, for example because the run is another one"
        )
    return used, source


def _without_paths(identity: Any) -> Any:
    """Returns an identity without the folders of runs, which may have moved."""
    if not isinstance(identity, Mapping):
        return identity
    return {key: _without_paths(value) for key, value in identity.items() if key != "run"}


@register_features("vector")
class InlineVectors:
    """The field `vector` of an item's line, a list of numbers."""

    def identity(self) -> Mapping[str, Any]:
        return {"field": "vector"}

    def vectors(self, items: Items) -> np.ndarray:
        found: list[Any] = []
        for index, fields in enumerate(items.fields):
            vector = fields.get("vector")
            size = len(found[0]) if found else None
            numbers = isinstance(vector, list) and all(
                type(each) in (int, float) for each in vector
            )
            if not numbers or not vector or len(vector) != (size or len(vector)):
                expected = f"{size} numbers, as the first item has" if size else "a list of numbers"
                raise UserError(
                    f'{items.where(index)}: "vector" must be {expected}; --features names another source of vectors'
                )
            found.append(vector)
        try:
            return np.asarray(found, np.float64)
        except OverflowError:  # an integer of hundreds of digits
            raise UserError(
                f'{items.path}: a "vector" has a number that is too large for a float'
            ) from None


@register_features("array")
@dataclasses.dataclass(frozen=True)
class ArrayRows:
    """Rows of a .npy or .npz file: the row `row` of an item's line, or as many rows as there are items, in their order.

    Attributes:
      path: the file.
      name: the array of a .npz file.
    """

    path: str
    name: str = ""

    def identity(self) -> Mapping[str, Any]:
        return {**file_identity(self.path), "name": self.name}

    def vectors(self, items: Items) -> np.ndarray:
        found = rows_of(read_array(self.path, self.name), items, self.path)
        return found.reshape(len(found), -1) if found.ndim > 2 else found


@register_features("pictures")
@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pixels between 0 and 1: of the picture `image` of an item's line, as in records, or of a row of an array of pictures.

    Attributes:
      size: pictures of lines are resized to squares of this many pixels.
      path, name: a .npy or .npz file of uint8 pictures [pictures, height, width, 3], as in `array`.
    """

    size: int = 32
    path: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        require_range("pictures", "[1, 1024]", size=self.size)

    def identity(self) -> Mapping[str, Any]:
        if not self.path:
            return {"size": self.size}
        return {**file_identity(self.path), "name": self.name}

    def vectors(self, items: Items) -> np.ndarray:
        if self.path:
            pixels = check_pixels(read_array(self.path, self.name), self.path)
            pixels = rows_of(pixels, items, self.path)
        else:
            reader = PictureReader()
            pixels = np.stack([self._picture(reader, items, index) for index in range(len(items))])
        return pixels.reshape(len(pixels), -1).astype(np.float32) / 255

    def _picture(self, reader: PictureReader, items: Items, index: int) -> np.ndarray:
        image = items.fields[index].get("image")
        if image is None:
            raise UserError(
                f'{items.where(index)}: "image" is missing, which names an image file beside {items.path}; pictures:path=FILE.npz reads '
                "an array"
            )
        try:
            return resized(reader.read(image, items.path), self.size)
        except RecordError as error:
            raise UserError(f"{items.where(index)}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Vectors that an annotator gives the field `text` of the items, such as `embedding:policy=RUN` or `sentence_encoder`.

    Attributes:
      spec: the annotator.
    """

    spec: str

    def identity(self) -> Mapping[str, Any]:
        return dict(get_annotator(self.spec).identity())

    def vectors(self, items: Items) -> np.ndarray:
        annotator = get_annotator(self.spec)
        if annotator.kind != "vectors":
            raise UserError(
                f"the annotator {self.spec!r} gives {annotator.kind}, and items need vectors; use embedding:policy=RUN or sentence_encoder"
            )
        texts = items.texts()
        candidates = Candidates([""] * len(texts), [[text] for text in texts], path=items.path)
        return np.concatenate(annotator.annotate(candidates))


def rows_of(array: np.ndarray, items: Items, path: str) -> np.ndarray:
    """Returns the rows of an array that belong to the items.

    Raises:
      UserError: an item names a row that does not exist, or the items name none and the array has another number of rows.
    """
    if not any("row" in fields for fields in items.fields):
        if len(array) != len(items):
            raise UserError(
                f'{path} has {len(array)} rows for the {len(items)} items of {items.path}; add "row" to every line, or give the same '
                "number"
            )
        return array
    rows = [fields.get("row") for fields in items.fields]
    for index, row in enumerate(rows):
        if type(row) is not int or not 0 <= row < len(array):
            raise UserError(
                f"{items.where(index)}: row {row!r} is none of the {len(array)} rows of {path}"
            )
    return array[np.asarray(rows)]
