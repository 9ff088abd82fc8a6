"""Detects the kind and layout of the records of a file from the names and types of their fields."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxalign.data.candidate_records import feedback_field
from jaxalign.data.chat_messages import is_messages
from jaxalign.data.layouts import TURN
from jaxalign.data.record_fields import RecordError, number
from jaxalign.data.records import KINDS, is_candidates

# Names that others use for a prompt, a response and feedback, the most likely name first.
_ALIASES = {
    "prompt": ("prompt", "question", "query", "instruction", "input", "source", "context"),
    "response": ("response", "completion", "answer", "output", "target", "reply", "summary"),
    "feedback": ("feedback", "label", "rating", "reward", "score", "thumb", "thumbs", "vote"),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """How a record can be read: its kind ('prompts' if it has only a prompt), layout and renamed fields."""

    kind: str
    layout: str = "records"
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def fields_text(self) -> str:
        """The fields in the form that the option `fields` takes."""
        return ",".join(f"{ours}={theirs}" for ours, theirs in self.fields)

    def describe(self) -> str:
        """Returns a description for messages, such as "kind 'triplet' in the layout 'trl'"."""
        layout = f" in the layout {self.layout!r}" if self.layout != "records" else ""
        named = f" with the fields {self.fields_text}" if self.fields else ""
        return f"kind {self.kind!r}{layout}{named}"

    def options(self) -> dict[str, str]:
        """Returns the options for reading the file by name; those that keep their default are left out, except ``kind``."""
        options = {"kind": self.kind}
        if self.layout != "records":
            options["layout"] = self.layout
        if self.fields:
            options["fields"] = self.fields_text
        return options

    def flags(self) -> str:
        """Returns the options for reading the file, as typed for `jaxalign cache` and for `jaxalign train`."""
        options = self.options()
        plain = " ".join(f"--{name}={value}" for name, value in options.items())
        bound = " ".join(f"--gin.TaskData.{name}={value}" for name, value in options.items())
        return f"{plain} (jaxalign cache) or {bound} (jaxalign train)"


def layout_of(obj: Any) -> Found | None:
    """Returns how an object can be read, from the names and types of its fields; None if no known form fits."""
    if not isinstance(obj, Mapping):
        return None
    names = set(obj)
    if {"instruction", "completions"} <= names:
        return Found("triplet", "ultrafeedback")
    if {"preferred_output", "non_preferred_output", "input"} <= names:
        return Found("pair", "openai")
    if {"history", "human_ref_A", "human_ref_B", "labels"} <= names:
        return Found("pair", "compared")
    if {"prompt", "output_A", "output_B", "label"} <= names:
        return Found("pair", "halos")
    feedback = _alias(obj, "feedback", _is_feedback)
    if feedback is None and obj.get("feedback") is not None:
        # Feedback that cannot be read is a mistake to report. Without it, bad responses would be imitated.
        feedback = "feedback"
    if is_messages(obj.get("messages", obj.get("conversations"))):
        return Found("triplet" if feedback in ("feedback", "label") else "seq2seq", "trl")
    prompt = _alias(obj, "prompt", lambda value: isinstance(value, str))
    if {"chosen", "rejected"} <= names:
        if isinstance(obj["chosen"], str) and prompt is not None:
            return _renamed("pair", prompt=prompt)
        dialogue = isinstance(obj["chosen"], str) and TURN.search(obj["chosen"])
        return Found("pair", "hh" if dialogue else "trl")
    if is_messages(obj.get("prompt")) and "output" in names and "completion" not in names:
        return Found("triplet" if feedback else "seq2seq", "halos")
    if is_messages(obj.get("prompt")) or is_messages(obj.get("completion")):
        return Found("triplet" if feedback else "seq2seq", "trl")
    if prompt is None:
        return None
    if {"response_a", "response_b"} <= names and names & {"human_labels", "winner", "preference"}:
        return Found("pair", "compared")
    if isinstance(obj.get("responses"), list) and is_candidates(obj):
        return _candidates(obj, prompt)
    if isinstance(obj.get("responses"), list):
        return _renamed("multi" if "scores" in names else "ranked", prompt=prompt)
    if {"instruction", "output"} <= names and isinstance(obj.get("input"), str):
        return Found("triplet" if feedback == "feedback" else "seq2seq", "instructions")
    response = _alias(obj, "response", lambda value: isinstance(value, str))
    if response is None or response == prompt:
        return _renamed("prompts", prompt=prompt)
    if isinstance(obj.get("scores"), Mapping):
        return _renamed("multi", prompt=prompt, response=response)
    if feedback is None:
        return _renamed("seq2seq", prompt=prompt, response=response)
    return _renamed("triplet", prompt=prompt, response=response, feedback=feedback)


def recognise(objects: Iterable[Any]) -> Found | None:
    """Returns how most of the objects can be read; None if none can."""
    counts = Counter(found for found in map(layout_of, objects) if found is not None)
    return counts.most_common(1)[0][0] if counts else None


def readable_as(obj: Any, kind: str, layout: str, fields: Mapping[str, str]) -> Found | None:
    """Returns how an unreadable object can be read with options other than those given; None if no other options read it."""
    found = layout_of(obj)
    if found is None or found.kind not in KINDS:
        return None
    if (found.kind, found.layout, dict(found.fields)) == (kind, layout, dict(fields)):
        return None
    return found


def _alias(obj: Mapping[str, Any], field: str, fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in _ALIASES[field] if name in obj and fits(obj[name])), None)


def _is_feedback(value: Any) -> bool:
    try:
        number(value, "feedback")
    except RecordError:
        return False
    return True


def _candidates(obj: Mapping[str, Any], prompt: str) -> Found:
    feedback = feedback_field(obj)
    named = {"prompt": prompt} | ({"feedback": feedback} if feedback else {})
    found = _renamed("triplet" if feedback else "seq2seq", **named)
    return dataclasses.replace(found, layout="candidates")


def _renamed(kind: str, **named: str) -> Found:
    return Found(
        kind, fields=tuple((ours, theirs) for ours, theirs in named.items() if ours != theirs)
    )
