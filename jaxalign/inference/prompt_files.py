"""Reads the prompts of a JSON Lines file, and their images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.chat_messages import is_messages, prompt_text, role_of
from jaxalign.data.chat_templates import ChatTemplate
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
      rendered: the number of prompts that were chat messages.
    """

    texts: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    images: PromptImages | None = None
    rendered: int = 0


def images_digest(images: PromptImages) -> str:
    """Returns twelve hexadecimal digits that differ between images."""
    digest = hashlib.sha256()
    for pixels in images.pixels:
        digest.update(hashlib.sha256(pixels or b"").digest())
    return digest.hexdigest()[:12]


def read_prompts(
    path: str,
    prompt_field: str = "prompt",
    images: ImageFormat | None = None,
    template: ChatTemplate | None = None,
) -> Prompts:
    """Reads the prompts of a file, one per line, and their images if a format is given.

    Prompts may be lists of chat messages, or the messages before the last answer in the field `messages`; they become text by the
    template, or without one lines `role: content`.

    Raises:
      UserError: a line is malformed, or the file has no prompts.
    """
    records, texts = [], []
    pixels: list[bytes | None] = []
    reader = None if images is None else ImageReader(images)
    rendered = 0
    for number, given in read_json_objects(path):
        try:
            record = _with_text(given, prompt_field, template)
        except RecordError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        rendered += record is not given
        texts.append(prompt_of(record, prompt_field, path, number))
        if reader is not None:
            try:
                image = record.get("image")
                pixels.append(None if image is None else reader.read(image, path))
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
    read_images = None if images is None else PromptImages(images, pixels)
    return Prompts(texts, records, read_images, rendered)


def _with_text(record: dict[str, Any], field: str, template: ChatTemplate | None) -> dict[str, Any]:
    """Returns the record with its prompt as text if it is messages; otherwise the record itself."""
    prompt = record.get(field)
    dialogue = record.get("messages", record.get("conversations"))
    if prompt is None and is_messages(dialogue):
        prompt = dialogue[:-1] if role_of(dialogue[-1]) == "assistant" else dialogue
    return {**record, field: prompt_text(prompt, template)} if is_messages(prompt) else record
