"""Writes scalars as TensorBoard event files.

`tensorboardX.SummaryWriter` writes in a thread behind a bounded queue. It blocks forever after a full disk has ended that thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class TensorBoard:
    """The tracker `tensorboard`: one folder of event files for each split, ``<run>/tensorboard/<split>``."""

    def __init__(self, run: Path, resume_step: int = 0) -> None:
        self._folder, self._resume_step = run / FOLDER, resume_step
        self._files: dict[str, _EventFile] = {}

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes scalars of a step."""
        if split not in self._files:
            self._files[split] = _EventFile(self._folder / split, self._resume_step)
        self._files[split].write(step, values)

    def write_samples(self, step: int, samples: Any) -> None:
        """Does nothing: samples are in the run's own file."""

    def close(self, failed: bool = False) -> None:
        """Closes the files. Every value has already been written."""
        for file in self._files.values():
            file.close()


class _EventFile:
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
        event = self._event_type(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._append(event)
        self._file.flush()

    def close(self) -> None:
        # Disk errors were already reported when the content was written.
        with contextlib.suppress(OSError):
            self._file.close()

    def _append(self, event: Any) -> None:
        """Appends one record: length, checksum of the length, content, checksum of the content."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", self._checksum(part)) for part in (length, content)]
        self._file.write(length + checksums[0] + content + checksums[1])
