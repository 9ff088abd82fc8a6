"""What an LLM judge is asked and what counts as its verdict.

A template is a text with fields in braces, such as `{prompt}`. Only the known fields are replaced, once: a text with braces is inserted as
it is, and no attribute of anything can be reached.

A verdict is the last line of a reply: `[[A]]`, `[[B]]`, `[[tie]]` (or `[[C]]`) for a pair, `[[7]]` or `[[7.5]]` for a score. The line may
begin with a word such as "Verdict:" and be set in bold. Anything else is malformed. It is not guessed at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from jaxalign import untrusted
from jaxalign.errors import UserError

REQUIRED = {
    "pairwise": ("prompt", "response_a", "response_b"),
    "pointwise": ("prompt", "response"),
}
_OPTIONAL = {"pairwise": ("rubric", "mark"), "pointwise": ("rubric", "mark", "low", "high")}
REMINDERS = {
    "pairwise": "The last line of your reply was no verdict. Reply with one line only: [[A]], [[B]] or [[tie]].",
    "pointwise": "The last line of your reply was no rating. Reply with one line only: the number in double brackets, such as [[{low}]].",
}
DEFAULT_RUBRIC = "Whether the response does what the prompt asks, is correct and complete, invents nothing, and is clear and to the point."
_MAX_BYTES = 1 << 20
_FIELD = re.compile(r"\{([a-z_]+)\}")
_VERDICT = re.compile(
    r"[\s*_`#>]*(?:(?:final\s+|my\s+)?(?:verdict|answer|rating|score)(?:\s+is)?\s*:?)?[\s*_`:]*"
    r"\[\[\s*(?P<verdict>[A-Za-z]+|-?\d+(?:\.\d+)?)\s*\]\][\s*_`.]*",
    re.IGNORECASE | re.ASCII,
)
_PAIRWISE = {"a": 1.0, "b": 0.0, "tie": 0.5, "c": 0.5}


def read_template(path: str, mode: str) -> str:
    """Returns a template: that of a file, or the one of the package if the path is empty.

    Raises:
      UserError: the file cannot be read, lacks a field that the mode needs, or has an unknown field.
    """
    given = path or Path(__file__).with_name(f"llm_judge_{mode}.txt")
    template = read_text(given, "template")
    fields = set(_FIELD.findall(template))
    known = REQUIRED[mode] + _OPTIONAL[mode]
    missing = [name for name in REQUIRED[mode] if name not in fields]
    unknown = sorted(fields - set(known))
    if missing:
        raise UserError(f"template {given} has no field {{{missing[0]}}}, which {mode} needs")
    if unknown:
        listed = ", ".join(f"{{{name}}}" for name in known)
        raise UserError(
            f"template {given} has an unknown field {{{unknown[0]}}}; the fields of {mode}: {listed}"
        )
    return template


def read_text(path: str | Path, what: str) -> str:
    """Returns the text of a file of the user.

    Raises:
      UserError: it cannot be read, is empty, longer than 1 MiB or not UTF-8.
    """
    try:
        text = untrusted.read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8") from None
    if not text.strip():
        raise UserError(f"{what} {path} is empty")
    return text.strip()


def render(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with its fields filled in. `{mark}` becomes a word that the texts cannot know in advance.

    >>> render("{prompt} -> {response} {x}", {"prompt": "{response}", "response": "{0.__class__}"})
    '{response} -> {0.__class__} {x}'
    """
    # A hash of the texts: it is the same each time, so that the cache knows the request, and a response cannot contain its own.
    mark = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:12]
    filled = {"mark": mark, **values}
    return _FIELD.sub(lambda field: filled.get(field[1], field[0]), template)


def parse_pairwise(text: str) -> float | None:
    """Returns 1 if the verdict is for the first response, 0 for the second, 0.5 for a tie, and None if there is no verdict.

    >>> parse_pairwise("Both are fine, but A is shorter.\\n\\n**Verdict: [[A]]**")
    1.0
    >>> parse_pairwise("[[A]] or [[B]]?") is None
    True
    """
    return _PAIRWISE.get(_last_verdict(text).lower())


def parse_score(text: str, low: float, high: float) -> float | None:
    """Returns the number of the verdict, and None if there is none between low and high.

    >>> parse_score("Correct.\\n[[8]]", 1, 10)
    8.0
    >>> parse_score("[[80]]", 1, 10) is None
    True
    """
    try:
        number = float(_last_verdict(text))
    except ValueError:
        return None
    return number if low <= number <= high else None


def _last_verdict(text: str) -> str:
    lines = text.strip().splitlines()
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return found["verdict"] if found else ""
