"""Averages step metrics and writes them to ``metrics.jsonl`` and to trackers."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxalign import files
from jaxalign.errors import UserError
from jaxalign.runs.metrics import METRICS_FILE, keep_lines_up_to
from jaxalign.training.trackers import Tracker


class MetricAccumulator:
    """An accumulator of step metrics on the host. Its means give every response the same weight."""

    def __init__(self) -> None:
        self._totals: dict[str, np.ndarray] = {}
        self.steps = 0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds one step's ``{name: (total, weight)}``; waits for the values if necessary."""
        for name, (total, weight) in jax.device_get(dict(metrics)).items():
            self._totals[name] = self._totals.get(name, np.zeros(2)) + np.array(
                [total, weight], np.float64
            )
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Returns the mean of every metric whose weight is not zero."""
        return {
            name: float(pair[0] / pair[1]) for name, pair in self._totals.items() if pair[1] > 0
        }

    def state(self) -> dict[str, list[float]]:
        """Returns the accumulated sums as JSON, for `set_state`."""
        return {name: pair.tolist() for name, pair in self._totals.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from the sums of another accumulator."""
        self._totals = {name: np.array(pair, np.float64) for name, pair in state.items()}

    def reset(self) -> None:
        """Clears all sums."""
        self._totals = {}
        self.steps = 0


class MetricWriter:
    """Writes metrics to ``metrics.jsonl`` and to trackers; does nothing on processes other than the first.

    A resumed run drops the lines after the step it resumes from and then appends, so no step occurs twice. The calling thread writes
    everything, so a full disk ends the run and not only a background thread.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        resume_step: int = 0,
        enabled: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._file = None
        self._trackers = tuple(trackers)
        self._model_dir = model_dir
        if enabled:
            path = model_dir / METRICS_FILE
            with self._disk_errors_explained():
                keep_lines_up_to(path, resume_step)
                self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one line ``{"step", "split", name: value}``, and the same scalars to the trackers.

        Raises:
          UserError: the disk is full or fails.
        """
        if self._file is None:
            return
        line = {
            name: value if math.isfinite(value) else str(value) for name, value in values.items()
        }
        with self._disk_errors_explained():
            self._file.write(json.dumps({"step": step, "split": split, **line}) + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, split, values)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Sends samples to the trackers."""
        for tracker in self._trackers:
            tracker.write_samples(step, samples)

    def close(self, failed: bool = False) -> None:
        """Closes the file and the trackers, which learn whether an error ended the run. Every line has already been written."""
        if self._file is not None:
            # Disk errors were already reported when the content was written.
            with contextlib.suppress(OSError):
                self._file.close()
        for tracker in self._trackers:
            tracker.close(failed)

    @contextlib.contextmanager
    def _disk_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = files.disk_problem(error)
            if problem is None:
                raise
            raise UserError(
                f"could not write metrics under {self._model_dir}: {problem}; checkpoints stay; the same command goes on from the last one"
            ) from error

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)
