"""Preemption: after SIGTERM or a maintenance notice of Google Cloud, a run saves a checkpoint and exits with its own exit code."""

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
from jaxalign.parallel.processes import EXIT_PREEMPTED

_POLL_SECONDS = 5.0
# https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}


class Preempted(SystemExit):
    """The run received a request to stop and has saved a checkpoint; the same command continues it. Its exit code is 75."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message


class PreemptionHandler:
    """Records whether the run has to stop. In a job of several processes all of them see the request at the same step.

    A context manager: it installs a handler of SIGTERM on entry and restores the previous handler on exit.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        self._closed = threading.Event()
        self._handler_installed = False
        self._previous_handler: Any = None

    def __enter__(self) -> PreemptionHandler:
        # In a job of several processes JAX's runtime handles SIGTERM from its start and informs the other processes.
        alone = not distributed.is_multiprocess()
        if alone and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._receive)
            self._handler_installed = True
        if server := _metadata_server():
            threading.Thread(target=self._watch, args=(server,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self._handler_installed:
            # The previous handler is None if it was not installed from Python.
            signal.signal(signal.SIGTERM, self._previous_handler or signal.SIG_DFL)

    def should_stop(self, step: int) -> bool:
        """Whether to save and stop after this step. Every process must call this once after every step."""
        if distributed.is_multiprocess():
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._received.is_set()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received.set()

    def _watch(self, server: str) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            if is_termination_announced(server):
                # A signal, so that the notice is handled like a request of a scheduler.
                os.kill(os.getpid(), signal.SIGTERM)
                return


def is_termination_announced(server: str) -> bool:
    """Whether the metadata server announces the preemption of this machine, or maintenance that terminates it."""
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
    """Returns the metadata server to poll: the one that the environment names, or Google's on a TPU; otherwise None."""
    named = os.environ.get("GCE_METADATA_HOST") or os.environ.get("GCE_METADATA_IP")
    if named or jax.default_backend() != "tpu":
        return named
    return None if "TPU_SKIP_MDS_QUERY" in os.environ else "metadata.google.internal"
