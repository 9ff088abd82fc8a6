"""Metrics on their way out: means of step metrics, ``metrics.jsonl``, TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from jaxalign.runs.metrics import METRICS_FILE, keep_lines_up_to


class MetricAccumulator:
    """Adds metrics of several steps on the host; their means weigh every response alike."""

    def __init__(self) -> None:
        self._totals: dict[str, np.ndarray] = {}
        self.steps = 0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds one step's ``{name: (total, weight)}``, waiting for it if need be."""
        for name, (total, weight) in jax.device_get(dict(metrics)).items():
            self._totals[name] = self._totals.get(name, np.zeros(2)) + np.array(
                [total, weight], np.float64
            )
        self.steps += 1

    def means(self) -> dict[str, float]:
        """The mean of every metric whose weight is not zero."""
        return {
            name: float(pair[0] / pair[1]) for name, pair in self._totals.items() if pair[1] > 0
        }

    def state(self) -> dict[str, list[float]]:
        """What was added, as JSON, for `set_state`."""
        return {name: pair.tolist() for name, pair in self._totals.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from another accumulator's sums."""
        self._totals = {name: np.array(pair, np.float64) for name, pair in state.items()}

    def reset(self) -> None:
        """Forgets everything."""
        self._totals = {}
        self.steps = 0


class MetricWriter:
    """Writes metrics to ``metrics.jsonl`` and TensorBoard; does nothing on processes other than the first.

    A resumed run appends: lines after the step it resumes from are dropped, so no step is there twice.
    """

    def __init__(self, model_dir: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self._file = None
        self._tensorboard: dict[str, Any] = {}
        self._model_dir = model_dir
        self._resume_step = resume_step
        if enabled:
            path = model_dir / METRICS_FILE
            keep_lines_up_to(path, resume_step)
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one line ``{"step", "split", name: value}`` and the same scalars to TensorBoard."""
        if self._file is None:
            return
        line = {
            name: value if math.isfinite(value) else str(value) for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, "split": split, **line}) + "\n")
        self._file.flush()
        writer = self._tensorboard.get(split)
        if writer is None:
            from tensorboardX import SummaryWriter

            folder = self._model_dir / "tensorboard" / split
            purge = self._resume_step + 1 if self._resume_step else None
            writer = self._tensorboard[split] = SummaryWriter(str(folder), purge_step=purge)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            self._file.close()
        for writer in self._tensorboard.values():
            writer.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
