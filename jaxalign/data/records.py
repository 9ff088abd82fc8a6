"""Record kinds, and the conversion of a JSON object to one `Record`.

| kind    | fields of the JSON object                     | responses | feedback                                      |
|---------|-----------------------------------------------|-----------|-----------------------------------------------|
| triplet | prompt, response, feedback                    | 1         | the number; true/"up" = 1, false/"down" = 0   |
| pair    | prompt, chosen, rejected, optional margin     | 2         | (margin, 0), margin 1 if absent; a negative   |
|         |                                               |           | one says that `rejected` is the better one    |
| ranked  | prompt, responses (best first), opt. feedback | K         | the list, or ranks scaled to 1 (best) .. 0    |
| seq2seq | prompt, response                              | 1         | none                                          |
| multi   | prompt, response, scores (named numbers)      | 1         | `feedback` if present, else the scores' mean  |

Kinds with feedback may also have `reference_feedback`: a list with the feedback of responses of the reference policy to the
prompt, in the unit of `feedback`. It has the same length in every record of a task.

A prompt of any kind may begin with an ``image`` (see `images`), which tasks of images read.

Stated feedback decides which response is the better one, not the position; see `preferences`.

`multi` also accepts `responses` with a list of score objects. A mapping from the names above to those of the file changes the
field names. Every failure is a `RecordError` with one of the reasons of `record_fields.REASONS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.images import ImageReader
from jaxalign.data.record_fields import FieldReader, RecordError, number, numbers, type_name
from jaxalign.errors import UserError

KINDS = ("triplet", "pair", "ranked", "seq2seq", "multi")
FIELDS = (
    "prompt",
    "response",
    "responses",
    "feedback",
    "chosen",
    "rejected",
    "margin",
    "scores",
    "group",
    "reference_feedback",
    "image",
)
# Kinds whose records only compare their responses.
COMPARED_KINDS = ("pair", "ranked")
# Kinds whose feedback is optional because the order of the responses implies it, and the name of the count of such records.
ASSUMED_FEEDBACK = {"pair": "without_margin", "ranked": "without_feedback"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One prompt with its responses.

    `feedback` has one number for each response, `scores` one tuple for each response, and `reference_feedback` one number for each
    sample of the reference policy.
    """

    prompt: str
    responses: tuple[str, ...]
    feedback: tuple[float, ...] | None = None
    scores: tuple[tuple[float, ...], ...] | None = None
    group: str | None = None
    source: str = ""
    file: str = ""
    line: int = 0
    reference_feedback: tuple[float, ...] | None = None
    image: bytes | None = dataclasses.field(default=None, repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """The values that two duplicates have in common: all fields except the location of the record."""
        key = (self.prompt, self.responses, self.feedback, self.scores, self.reference_feedback)
        return key if self.image is None else (*key, self.prompt_key)

    @property
    def prompt_key(self) -> str:
        """A text that equal prompts have in common: the prompt's, with a digest of its image if it has one."""
        return prompt_key(self.prompt, self.image)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}" if self.file else f"record {self.line}"


def prompt_key(prompt: str, image: bytes | None) -> str:
    """Returns the text of a prompt, followed by a digest of its image."""
    if image is None:
        return prompt
    return f"{prompt}\n{hashlib.blake2b(image, digest_size=16).hexdigest()}"


def prompt_id(prompt: str) -> int:
    """Returns a positive int32 hash of the prompt's text; equal texts give equal ids on every machine."""
    value = int.from_bytes(
        hashlib.blake2b(prompt.encode("utf-8"), digest_size=4).digest(), "little"
    )
    return (value & 0x7FFFFFFF) or 1


def check_kind(kind: str) -> str:
    """Returns the kind itself; raises UserError, which lists the known kinds, if it is unknown."""
    if kind not in KINDS:
        raise UserError(f"Unknown record kind {kind!r}; known: {', '.join(KINDS)}.")
    return kind


def is_candidates(obj: Mapping[str, Any]) -> bool:
    """Returns whether an object is a line of candidates (see `candidates`), whose responses are in no order."""
    return isinstance(obj.get("annotations"), Mapping) or isinstance(obj.get("log_probs"), list)


def states_feedback(obj: Any, kind: str, fields: Mapping[str, str] | None = None) -> bool:
    """Returns whether a record of a kind of `ASSUMED_FEEDBACK` states its feedback, instead of implying it by the order."""
    return (
        FieldReader(obj, fields or {}).optional("margin" if kind == "pair" else "feedback")
        is not None
    )


def parse_record(
    obj: Any,
    kind: str,
    *,
    fields: Mapping[str, str] | None = None,
    score_names: Sequence[str] | None = None,
    source: str = "",
    file: str = "",
    line: int = 0,
    images: ImageReader | None = None,
) -> Record:
    """Returns the record in a JSON object.

    Args:
      obj: the result of `json.loads`.
      kind: one of `KINDS`.
      fields: the file's names of those `FIELDS` whose names differ.
      score_names: for `multi`, the required scores in order; None takes the object's own, sorted.
      source, file, line: kept in the record for reports.
      images: reads the field `image`, which is ignored without it.

    Raises:
      RecordError: the record cannot be used; the message names the field and the error.
    """
    if not isinstance(obj, Mapping):
        raise RecordError("wrong_type", f"the line holds a {type_name(obj)}, not an object")
    reader = FieldReader(obj, fields or {})
    prompt = reader.text("prompt")
    if not prompt.strip():
        raise RecordError("empty_prompt", "the prompt is empty")
    responses: tuple[str, ...] = ()
    feedback: tuple[float, ...] | None = None
    scores: tuple[tuple[float, ...], ...] | None = None
    if kind == "pair":
        responses = (reader.text("chosen"), reader.text("rejected"))
        margin = reader.optional("margin")
        feedback = (1.0 if margin is None else number(margin, "margin"), 0.0)
    elif kind == "ranked":
        responses = reader.texts("responses")
        if len(responses) < 2:
            raise RecordError("wrong_type", "a ranked record needs at least two responses")
        given = reader.optional("feedback")
        if given is None:
            if is_candidates(obj):
                raise RecordError(
                    "missing_rating",
                    "the responses are candidates, in no order; read them with layout=candidates and "
                    "fields=feedback=annotations.NAME, or make records with jaxalign select",
                )
            last = len(responses) - 1
            feedback = tuple((last - rank) / last for rank in range(len(responses)))
        else:
            feedback = numbers(given, "feedback", len(responses))
    elif kind == "triplet":
        responses = (reader.text("response"),)
        feedback = (number(reader.required("feedback"), "feedback"),)
    elif kind == "seq2seq":
        responses = (reader.text("response"),)
    elif kind == "multi":
        responses, scores, feedback = _parse_multi(reader, score_names)
    else:
        check_kind(kind)
    for position, response in enumerate(responses):
        if not response.strip():
            raise RecordError("empty_response", f"response {position} is empty")
    if kind in COMPARED_KINDS and len(set(responses)) == 1:
        raise RecordError("identical", "all responses are the same text")
    group, image = reader.optional("group"), reader.optional("image")
    return Record(
        prompt=prompt,
        responses=responses,
        feedback=feedback,
        scores=scores,
        group=None if group is None else str(group),
        source=source,
        file=file,
        line=line,
        reference_feedback=None if kind == "seq2seq" else _reference_feedback(reader),
        image=None if images is None or image is None else images.read(image, file),
    )


def _reference_feedback(reader: FieldReader) -> tuple[float, ...] | None:
    given = reader.optional("reference_feedback")
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise RecordError(
            "wrong_type",
            "reference_feedback must be a list of at least one number, the feedback of samples of the reference policy",
        )
    return tuple(number(item, "reference_feedback") for item in given)


def _parse_multi(
    reader: FieldReader, score_names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]:
    several = reader.optional("responses") is not None
    responses = reader.texts("responses") if several else (reader.text("response"),)
    given = reader.required("scores")
    objects = given if several else [given]
    if not isinstance(objects, list) or len(objects) != len(responses):
        raise RecordError(
            "wrong_type", f"scores must hold {len(responses)} objects, one a response"
        )
    rows = []
    for scores in objects:
        if not isinstance(scores, Mapping) or not scores:
            raise RecordError("wrong_type", "scores must be an object of named numbers")
        names = sorted(scores) if score_names is None else score_names
        missing = [name for name in names if scores.get(name) is None]
        if missing:
            raise RecordError("missing_field", f"scores lacks {', '.join(map(repr, missing))}")
        rows.append(tuple(number(scores[name], f"scores.{name}") for name in names))
    overall = reader.optional("feedback")
    if overall is None:
        feedback = tuple(math.fsum(row) / len(row) for row in rows)
    else:
        feedback = numbers(overall if several else [overall], "feedback", len(responses))
    return responses, tuple(rows), feedback
