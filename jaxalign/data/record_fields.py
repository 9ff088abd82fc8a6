"""The fields of a record's JSON object: where they are, which types they have, and the error for a record that cannot be used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

REASONS = (
    "invalid_json",
    "missing_field",
    "wrong_type",
    "nonfinite_feedback",
    "empty_prompt",
    "empty_response",
    "long_prompt",
    "long_response",
    "duplicate",
    "identical",
    "unknown_pieces",
    "control_tokens",
    "missing_rating",
    "reference_mismatch",
    "unreadable_image",
)
MAX_FLOAT32 = 3.4028235e38
_WORDS = {"up": 1.0, "down": 0.0, "true": 1.0, "false": 0.0, "\U0001f44d": 1.0, "\U0001f44e": 0.0}
# A thumb as an emoji may have a skin tone, and a selector of its form.
_EMOJI_FORMS = re.compile("[\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf(inity)?)")


class RecordError(ValueError):
    """A record that cannot be used: `reason` is one of `REASONS`, and the message describes the error."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def field_value(obj: Mapping[str, Any], name: str) -> Any:
    """Returns the field `name`; if there is none, `a.b` is the field b of the object a; None if neither exists."""
    if name in obj or "." not in name:
        return obj.get(name)
    outer, _, inner = name.partition(".")
    nested = obj.get(outer)
    return field_value(nested, inner) if isinstance(nested, Mapping) else None


class FieldReader:
    """Looks up fields under the file's names and checks their types."""

    def __init__(self, obj: Mapping[str, Any], fields: Mapping[str, str]):
        self._obj = obj
        self._fields = fields

    def optional(self, field: str) -> Any:
        """Returns a field, or None if it is missing or null."""
        return field_value(self._obj, self._fields.get(field, field))

    def required(self, field: str) -> Any:
        """Returns a field; raises RecordError if it is missing or null."""
        value = self.optional(field)
        if value is None:
            name = self._fields.get(field, field)
            state = "is null" if name in self._obj else "is missing"
            raise RecordError("missing_field", f"the field {name!r} {state}")
        return value

    def text(self, field: str) -> str:
        """Returns a required string."""
        value = self.required(field)
        if not isinstance(value, str):
            raise RecordError(
                "wrong_type",
                f"{self._fields.get(field, field)!r} is a {type_name(value)}, not a string",
            )
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """Returns a required list of strings."""
        value = self.required(field)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecordError(
                "wrong_type", f"{self._fields.get(field, field)!r} must be a list of strings"
            )
        return tuple(value)


def number(value: Any, field: str) -> float:
    """Returns a float that float32 can hold, from a number, a boolean, "up"/"down", or a number as text (as in tables).

    Raises:
      RecordError: the value is not a number, is NaN or infinite, or is beyond float32.
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = _EMOJI_FORMS.sub("", value.strip().lower())
        if text in _WORDS:
            return _WORDS[text]
        if not _NUMBER.fullmatch(text):
            raise RecordError(
                "wrong_type",
                f'{field} is the text {value[:40]!r}; wanted a number, true/false or "up"/"down"',
            )
        value = float(text)
    if not isinstance(value, (int, float)):
        raise RecordError(
            "wrong_type",
            f'{field} is a {type_name(value)}; wanted a number, true/false or "up"/"down"',
        )
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise RecordError("nonfinite_feedback", f"{field} is {result}")
    if abs(result) > MAX_FLOAT32:
        raise RecordError(
            "nonfinite_feedback", f"{field} is {result:g}, which float32 holds as infinite"
        )
    return result


def numbers(value: Any, field: str, length: int) -> tuple[float, ...]:
    """Returns a list of `length` numbers as a tuple; raises RecordError otherwise."""
    if not isinstance(value, list) or len(value) != length:
        raise RecordError(
            "wrong_type", f"{field} must be a list of {length} numbers, one a response"
        )
    return tuple(number(item, field) for item in value)


def type_name(value: Any) -> str:
    """Returns JSON's name of a value's type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
