"""Reads any data file as candidates: candidates themselves, or logged records of any kind and layout with their feedback."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.data import layouts, recognition
from jaxalign.data.candidates import Annotation, Candidates, read_candidates
from jaxalign.data.json_lines import read_json_lines
from jaxalign.data.recognition import Found
from jaxalign.data.record_fields import field_value
from jaxalign.data.records import FIELDS, KINDS, Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.sources import JsonlSource

_LOOKED_AT = 500
_MAX_REJECTED_FRACTION = 0.05
# Fields of a logged record of another layout that its line of candidates keeps. Of our own layout all fields are kept.
_KEPT = ("references", "reference", "target", "group", "image", "split", "source_id")
# Fields of a line of candidates that describe its responses.
_OF_RESPONSES = ("finished", "sampler")


def read_responses(
    path: str,
    *,
    kind: str = "",
    layout: str = "",
    fields: str = "",
    join_prompts: bool = False,
    side_file: str = "",
) -> tuple[Candidates, RejectionLog]:
    """Reads candidates, or logged records, each of which becomes a line with its responses.

    The feedback that records state becomes the annotation `feedback`, and the scores of kind `multi` become one annotation each.

    Args:
      path: candidates, or a data file of any format that `json_lines` reads.
      kind, layout, fields: how to read logged records, see `inspect`; recognised by default.
      join_prompts: whether the records of a prompt become one line.
      side_file: lists the unusable records if there are so many that reading stops.

    Returns:
      The candidates and the rejected records.

    Raises:
      DataError: the file cannot be read, or too many of its records are unusable.
    """
    log = RejectionLog()
    found = _found(path, kind, layout, fields)
    candidates = _as_candidates(path, found, given=bool(kind or layout or fields))
    if candidates is not None:
        return (_joined(candidates) if join_prompts else candidates), log
    source = JsonlSource(
        {"all": path},
        found.kind,
        layout=found.layout,
        fields=dict(found.fields),
        duplicates="keep",
    )
    lines: dict[int, list[Record]] = {}
    for record in source.records("all", log):
        lines.setdefault(record.line, []).append(record)
    log.check(_MAX_REJECTED_FRACTION, side_file or f"{path}.rejected.jsonl")
    if not lines:
        raise DataError(f"{path} holds no usable records.")
    candidates = _candidates(path, lines, found, source.score_names)
    return (_joined(candidates) if join_prompts else candidates), log


def _found(path: str, kind: str, layout: str, fields: str) -> Found:
    objects = read_json_lines(path, log=RejectionLog())
    first = [obj for _, obj, _ in itertools.islice(objects, _LOOKED_AT)]
    looks = recognition.recognise(first)
    if kind and kind not in KINDS:
        raise DataError(f"kind={kind!r}; known: {', '.join(KINDS)}, or nothing to recognise it.")
    if not kind and looks is None:
        raise DataError(
            f"No record of {path} could be recognised; say how to read it with --kind, --layout and --fields (docs/data.md)."
        )
    looks = looks or Found(kind)
    renamed = tuple(layouts.parse_fields(fields).items()) if fields else looks.fields
    found = Found(kind or looks.kind, layouts.check_layout(layout or looks.layout), renamed)
    if found.kind == "prompts":
        raise DataError(
            f"{path} has prompts without responses; let a policy answer them first: jaxalign generate --input={path}"
        )
    return found


def _as_candidates(path: str, found: Found, *, given: bool) -> Candidates | None:
    """Returns the candidates of a file, or None if it has to be read as records."""
    if found.layout == "candidates":
        return read_candidates(path)
    if found != Found("ranked") or given:
        return None
    # Candidates without annotations look like ranked responses. Their texts may be equal or empty.
    try:
        return read_candidates(path)
    except DataError:
        return None


def _candidates(
    path: str, lines: Mapping[int, list[Record]], found: Found, score_names: tuple[str, ...]
) -> Candidates:
    kept = _kept_fields(path, found)
    prompts, responses, others, feedback = [], [], [], []
    scores: dict[str, list[np.ndarray]] = {name: [] for name in score_names}
    for index, (line, records) in enumerate(lines.items()):
        prompts.append(records[0].prompt)
        responses.append([text for record in records for text in record.responses])
        fields, stated = kept.get(line, ({}, True))
        others.append({"id": index, **fields})
        values = [value for record in records for value in record.feedback or ()]
        count = len(responses[-1])
        feedback.append(np.array(values) if values and stated else np.full(count, np.nan))
        rows = [row for record in records for row in record.scores or ()]
        for column, name in enumerate(score_names):
            scores[name].append(np.array([row[column] for row in rows]))
    annotations = {name: Annotation("scores", values) for name, values in scores.items()}
    if any(np.isfinite(values).any() for values in feedback):
        annotations["feedback"] = Annotation("scores", feedback)
    return Candidates(prompts, responses, annotations, others, path)


def _kept_fields(path: str, found: Found) -> dict[int, tuple[dict[str, Any], bool]]:
    """Returns the fields to keep of every line, and whether the line states feedback instead of implying it."""
    renamed = dict(found.fields)
    name = renamed.get("feedback", "feedback")
    # What the responses and annotations of the line are made of, or what has a meaning there.
    read = {*renamed.values(), *FIELDS, "id", "annotations", "log_probs", *_OF_RESPONSES}
    result = {}
    for line, obj, _ in read_json_lines(path, log=RejectionLog()):
        if not isinstance(obj, Mapping):
            continue
        kept = {
            key: value
            for key, value in obj.items()
            if value is not None
            and (key in _KEPT or (found.layout == "records" and key not in read))
        }
        if obj.get("id") is not None:
            kept["source_id"] = obj["id"]
        # The order of a ranking and the mean of several scores are not feedback that somebody gave.
        implied = found.kind in ("ranked", "multi") and found.layout == "records"
        result[line] = (kept, not implied or field_value(obj, name) is not None)
    return result


def _joined(candidates: Candidates) -> Candidates:
    """Returns candidates with one line for each prompt, which includes its image, with the fields of its first line."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prompt in enumerate(candidates.prompts):
        image = candidates.fields[index].get("image")
        groups.setdefault((prompt, json.dumps(image, sort_keys=True)), []).append(index)
    for name, found in candidates.annotations.items():
        if found.kind == "preferences" and len(groups) < len(candidates):
            raise DataError(
                f"{candidates.path}: lines of one prompt cannot be joined, because the annotation {name!r} compares within lines"
            )
    fields = []
    for index, group in enumerate(groups.values()):
        # What `generate` says of the responses of a line does not hold for those of several lines.
        unshared = () if len(group) == 1 else _OF_RESPONSES
        kept = candidates.fields[group[0]].items()
        fields.append({**{key: value for key, value in kept if key not in unshared}, "id": index})
    return Candidates(
        [prompt for prompt, _ in groups],
        [[text for i in group for text in candidates.responses[i]] for group in groups.values()],
        {
            name: Annotation(
                found.kind,
                [np.concatenate([found.values[i] for i in group]) for group in groups.values()]
                if len(groups) < len(candidates)
                else found.values,
                found.names,
            )
            for name, found in candidates.annotations.items()
        },
        fields,
        candidates.path,
    )
