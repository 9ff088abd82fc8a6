"""Reads typed, bounded values from an untrusted JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError


class JsonReader:
    """A reader of typed values from a JSON object. Its errors name the file and the key."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self.where = content, where

    def wrong(self, key: str, expected: str) -> UserError:
        """Returns the error for a key that has an invalid value."""
        found = self._content.get(key)
        shown = repr(found) if isinstance(found, (str, int, float)) else type(found).__name__
        return UserError(f"{self.where}: '{key}' must be {expected}, not {shown[:80]}")

    def text(
        self,
        key: str,
        default: str | None,
        allowed: tuple[str, ...] | None = None,
        *,
        required: bool = False,
    ) -> str | None:
        """Returns a text, limited to the allowed values if they are given; the default if it is absent and not required."""
        value = self._content.get(key)
        if value is None and not required:
            return default
        if not isinstance(value, str) or len(value) > 4096 or (allowed and value not in allowed):
            raise self.wrong(key, f"one of {', '.join(allowed)}" if allowed else "text")
        return value

    def integer(self, key: str, least: int, most: int) -> int | None:
        """Returns an integer in a range; None if it is absent."""
        value = self._content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, *, above_zero: bool = False) -> float | None:
        """Returns a finite number; None if it is absent."""
        value = self._content.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or (above_zero and value <= 0)
        ):
            raise self.wrong(key, f"a {'positive' if above_zero else 'finite'} number")
        return float(value)

    def truth(self, key: str) -> bool:
        """Returns true or false; false if it is absent."""
        value = self._content.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def optional_object(self, key: str) -> Mapping[str, Any] | None:
        """Returns an object; None if it is absent."""
        value = self._content.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "an object")
        return value

    def objects(self, key: str, *, required: bool = False) -> Mapping[str, Mapping[str, Any]]:
        """Returns an object of objects; an empty one if it is absent and not required."""
        value = self.optional_object(key)
        if value is None and required:
            raise UserError(f"{self.where} lacks the object '{key}'")
        value = value or {}
        if not all(isinstance(each, Mapping) for each in value.values()):
            raise self.wrong(key, "an object of objects")
        return value

    def whole_numbers(self, key: str, most: int) -> Mapping[str, int] | None:
        """Returns an object of integers from 1 to ``most``; None if it is absent."""
        value = self.optional_object(key)
        if value is None:
            return None
        inner = JsonReader(value, f"{self.where}, {key}")
        for name in value:
            if inner.integer(name, 1, most) is None:
                raise inner.wrong(name, "a whole number")
        return value
