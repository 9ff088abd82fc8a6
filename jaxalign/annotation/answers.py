"""Extractors of the answer that a response gives, for votes.

A command names one as `name`, `name:argument` or `name:key=value`, or as `module:function` for a function of one's own (text -> answer,
or None if the text gives no answer). Two responses agree if their answers are equal texts.

    @register_answer_extractor("first_word")
    def first_word():
        return lambda text: text.split()[0] if text.split() else None
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from jaxalign.errors import UserError
from jaxalign.plugins import Registry

AnswerExtractor = Callable[[str], str | None]

# Commas separate thousands only between groups of three digits; an exponent belongs to its number.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-−])?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?![\w.]))?"
)


def _own(name: str, function: Callable[..., Any]) -> AnswerExtractor:
    """Returns a user's function, with white space around its answers removed and its results checked."""

    def extract(text: str) -> str | None:
        answer = function(text)
        if answer is not None and not isinstance(answer, str):
            raise UserError(
                f"answer extractor {name!r} gave {type(answer).__name__} for {text[:40]!r}; it must give a text, or None for no answer"
            )
        return (answer or "").strip() or None

    return extract


_EXTRACTORS: Registry[AnswerExtractor] = Registry("answer extractor", _own)
register_answer_extractor = _EXTRACTORS.register
get_answer_extractor = _EXTRACTORS.build
answer_extractor_names = _EXTRACTORS.names


@register_answer_extractor("last_number")
def last_number(after: str = "") -> AnswerExtractor:
    """Builds the extractor of the last number of a text, written without thousands separators and without zeros at its end.

    Args:
      after: a mark such as `####`: only the text after its last occurrence is read, and a text without it has no answer.

    >>> last_number()("He pays $1,250.50 in all.")
    '1250.5'
    """

    def extract(text: str) -> str | None:
        _, mark, rest = text.rpartition(after) if after else ("", "-", text)
        numbers = _NUMBER.findall(rest) if mark else []
        return _plain(numbers[-1]) if numbers else None

    return extract


@register_answer_extractor("regex")
def regex(pattern: str) -> AnswerExtractor:
    """Builds the extractor of the last match of a regular expression, or of the match's first group if it has groups."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"answer extractor 'regex': {pattern!r} is not a regular expression: {error}"
        ) from None

    def extract(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        if not matches:
            return None
        return _in_one_form(matches[-1][1 if compiled.groups else 0] or "") or None

    return extract


@register_answer_extractor("whole_text")
def whole_text() -> AnswerExtractor:
    """Builds the extractor that takes the text itself, up to white space and case.

    >>> whole_text()("The  Straße") == whole_text()("the STRASSE")
    True
    """
    return lambda text: _in_one_form(text.casefold()) or None


def _in_one_form(text: str) -> str:
    """Returns a text with single spaces, and with accents as a part of their letters: both ways to write these look alike."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _plain(number: str) -> str:
    """Returns one spelling for equal numbers: `1,000.0` and `1000` are the same."""
    value = decimal.Decimal(number.replace(",", "").replace("−", "-"))
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.lstrip("0") or "0" if text.isdigit() else "0" if value == 0 else text
