"""Traces some steps of a run with JAX's profiler, for TensorBoard and XProf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from jaxalign.errors import UserError

FOLDER = "profile"
_STEPS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_steps(text: str) -> tuple[int, int] | None:
    """Returns the first and the last step of ``FIRST-LAST`` or ``STEP``; None for an empty text.

    Raises:
      UserError: the text has another form, or the steps are not in order.

    >>> parse_steps("10-12")
    (10, 12)
    """
    if not text:
        return None
    match = _STEPS.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            f"PROFILE_STEPS = {text!r}: write the first and the last step to trace, such as 10-12"
        )
    return first, last


class Profile:
    """A trace of consecutive steps in ``<run>/profile``. Each process traces its own devices.

    Args:
      folder: the run folder.
      steps: the first and the last step; None for no trace. A run that starts after the first step traces from there.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps = folder / FOLDER, steps
        self._open = False

    def before(self, step: int) -> None:
        """Starts the trace if the step is in it."""
        if self._steps is not None and not self._open and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._open = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, when the step's results exist."""
        if self._steps is not None and self._open and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace, if it has begun, and writes it."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
