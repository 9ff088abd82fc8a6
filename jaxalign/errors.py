"""Errors that the user can fix, and checks that raise them."""

import math
import numbers
from collections.abc import Iterable


class UserError(ValueError):
    """An error in data, configuration or a checkpoint path, described in one sentence.

    The message names the file and line, the gin binding, or the array with its shape, and gives
    a remedy. The command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException, limit: int = 300) -> str:
    """Returns the beginning of a library's error for a message: its first line, and the second if the first only announces it.

    >>> first_line(ValueError("Trees do not match:\\n\\n  params.kernel"))
    'Trees do not match: params.kernel'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:limit]


def require_range(owner: str, interval: str, **values: float | int | None) -> None:
    """Refuses settings that are NaN or outside an interval. None is accepted, because it stands for a setting that is off.

    Args:
      owner: the class or function that the settings belong to.
      interval: the interval in mathematical notation, such as ``[0, inf)`` or ``(0, 1]``.
      **values: the settings by name.

    Raises:
      UserError: a setting is outside the interval; the message names it.

    >>> require_range("adamw", "[0, 1)", b1=2.0)
    Traceback (most recent call last):
      ...
    jaxalign.errors.UserError: adamw.b1 is 2.0; it must lie in [0, 1)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        if value is None:
            continue
        inside = isinstance(value, numbers.Real) and (
            (low < value if interval[0] == "(" else low <= value)
            and (value < high if interval[-1] == ")" else value <= high)
        )
        if not inside:
            raise UserError(f"{owner}.{name} is {value}; it must {_in_words(low, high, interval)}")


def require_one_of(owner: str, choices: Iterable[str], **values: str) -> None:
    """Refuses a setting that is not one of the choices.

    Raises:
      UserError: the setting is not among the choices; the message names the setting and the choices.
    """
    for name, value in values.items():
        if value not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise UserError(f"{owner}.{name} is {value!r}; it must be one of {known}")


def _in_words(low: float, high: float, interval: str) -> str:
    if (low, high) == (-math.inf, math.inf):
        return "be a finite number"
    if high == math.inf:
        return "be positive" if (low, interval[0]) == (0, "(") else f"be at least {low:g}"
    return f"lie in {interval}"
