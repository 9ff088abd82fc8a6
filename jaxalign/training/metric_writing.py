"""Averages step metrics and writes them to ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import numpy as np

from jaxalign import files
from jaxalign.errors import UserError
from jaxalign.runs.metrics import METRICS_FILE, keep_lines_up_to


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
    """Writes metrics to ``metrics.jsonl`` and TensorBoard; does nothing on processes other than the first.

    A resumed run drops the lines after the step it resumes from and then appends, so no step occurs twice. The calling thread writes
    everything, so a full disk ends the run and not only a background thread.
    """

    def __init__(self, model_dir: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self._file = None
        self._tensorboard: dict[str, _EventFile] = {}
        self._model_dir = model_dir
        self._resume_step = resume_step
        if enabled:
            path = model_dir / METRICS_FILE
            with self._disk_errors_explained():
                keep_lines_up_to(path, resume_step)
                self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes one line ``{"step", "split", name: value}`` and the same scalars to TensorBoard.

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
            if split not in self._tensorboard:
                folder = self._model_dir / "tensorboard" / split
                self._tensorboard[split] = _EventFile(folder, self._resume_step)
            self._tensorboard[split].write(step, values)

    def close(self) -> None:
        """Closes the files. Every line has already been written."""
        if self._file is not None:
            _close(self._file)
        for writer in self._tensorboard.values():
            writer.close()

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
        self.close()


class _EventFile:
    """A TensorBoard event file.

    `tensorboardX.SummaryWriter` writes in a thread behind a bounded queue. It blocks forever after a full disk has ended that thread.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._event_type, self._checksum = event_pb2.Event, masked_crc32c
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._file = (folder / name).open("ab")
        self._append(self._event_type(wall_time=time.time(), file_version="brain.Event:2"))
        if resume_step:
            # TensorBoard discards the values of other files for this step and later steps.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._append(
                self._event_type(wall_time=time.time(), step=resume_step + 1, session_log=start)
            )
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of a step."""
        event = self._event_type(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._append(event)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        _close(self._file)

    def _append(self, event: Any) -> None:
        """Appends one record: length, checksum of the length, content, checksum of the content."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        self._file.write(length + checksums[0] + content + checksums[1])


def _close(file: IO[Any]) -> None:
    """Closes a file and ignores disk errors, which were already reported when the content was written."""
    with contextlib.suppress(OSError):
        file.close()
