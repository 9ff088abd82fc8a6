"""Stopping in good order: SIGTERM and Google Cloud's notices make a run save and exit with a code of its own."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from types import FrameType, TracebackType
from typing import Any

import jax

from jaxalign.parallel import distributed
from jaxalign.parallel.processes import STOPPED

_POLL_SECONDS = 5.0
# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


class Stopped(SystemExit):
    """The run was told to stop and has saved; the same command goes on. As an exit it has the code 75."""

    def __init__(self, message: str) -> None:
        super().__init__(STOPPED)
        self.message = message


class StopNotice:
    """Knows whether the run shall stop. In a job of several processes all of them learn it at the same step.

    A context: on entry it takes over SIGTERM, on exit it gives it back.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._over = threading.Event()
        self._taken = False
        self._previous: Any = None

    def __enter__(self) -> StopNotice:
        # With several processes JAX's runtime has taken over SIGTERM when it started, and tells the others.
        alone = not distributed.several()
        if alone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._taken = True
        if server := _metadata_server():
            threading.Thread(target=self._watch, args=(server,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._taken:
            # None: it was not Python's.
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step; to be asked once after every step, by all processes."""
        if distributed.several():
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._received.is_set()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received.set()

    def _watch(self, server: str) -> None:
        while not self._over.wait(_POLL_SECONDS):
            if noticed(server):
                # The same way as the notice that a scheduler gives.
                os.kill(os.getpid(), signal.SIGTERM)
                return


def noticed(server: str) -> bool:
    """Whether the metadata server announces maintenance that ends this machine, or its preemption."""
    for key, value in _NOTICES.items():
        request = urllib.request.Request(
            f"http://{server}/computeMetadata/v1/instance/{key}",
            headers={"Metadata-Flavor": "Google"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as response:
                if response.read(100).decode("ascii", "replace").strip() == value:
                    return True
        except (OSError, urllib.error.URLError):
            continue
    return False


def _metadata_server() -> str | None:
    """Asked only on a TPU, whose machines are Google's, or where the environment names a server."""
    named = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP")
    if named or jax.default_backend() != "tpu":
        return named
    return None if "TPU_SKIP_MDS_QUERY" in os.environ else "metadata.google.internal"
