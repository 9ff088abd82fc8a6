"""Reads the prompts of a JSON Lines file, and their images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.evaluation_records import prompt_of
from jaxalign.data.images import ImageFormat, ImageReader
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.record_fields import RecordError
from jaxalign.errors import UserError
from jaxalign.inference.image_prompts import PromptImages

_WRITTEN = ("id", "responses", "log_probs", "finished", "sampler", "annotations")
# Lists of these fields belong to the responses that the new ones replace.
_OF_RESPONSES = ("feedback", "scores")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a file.

    Attributes:
      texts: the prompts, one per line.
      records: the other fields of each line.
      images: the pixels of each line's image; None if the policy reads no images.
    """

    texts: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    images: PromptImages | None = None


def images_digest(images: PromptImages) -> str:
    """Returns twelve hexadecimal digits that differ between images."""
    digest = hashlib.sha256()
    for pixels in images.pixels:
        digest.update(hashlib.sha256(pixels or b"").digest())
    return digest.hexdigest()[:12]


def read_prompts(
    path: str, prompt_field: str = "prompt", images: ImageFormat | None = None
) -> Prompts:
    """Reads the prompts of a file, one per line, and their images if a format is given.

    Raises:
      UserError: a line is malformed, or the file has no prompts.
    """
    records, texts = [], []
    pixels: list[bytes | None] = []
    reader = None if images is None else ImageReader(images)
    for number, record in read_json_objects(path):
        texts.append(prompt_of(record, prompt_field, path, number))
        if reader is not None:
            try:
                given = record.get("image")
                pixels.append(None if given is None else reader.read(given, path))
            except RecordError as error:
                raise UserError(f"{path}:{number}: {error}") from error
        kept = {
            key: value
            for key, value in record.items()
            if key not in _WRITTEN and not (key in _OF_RESPONSES and isinstance(value, list))
        }
        if "id" in record:
            kept["source_id"] = record["id"]
        records.append(kept)
    if not texts:
        raise UserError(f"{path}: holds no prompts.")
    return Prompts(texts, records, None if images is None else PromptImages(images, pixels))
