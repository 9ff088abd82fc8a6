"""Common parts of the benchmarks: measuring two workers in turn, and printing ratios.

Each side of a comparison runs in its own process, so that thread pools and memory do not mix. The parent asks the two processes in turn
and reports the median and range of the ratios of neighbouring measurements. Absolute times of one side would depend more on other work
of the machine than on the program.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# The T5 of all comparisons: 1.1 layout (gated gelu, untied), 6.8 million parameters.
MODEL = {
    "vocab_size": 1024,
    "emb_dim": 256,
    "num_heads": 4,
    "head_dim": 64,
    "mlp_dim": 512,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
}
# The model that `make demo` trains: it has the highest step rate that the input pipeline has to match.
SMALLEST_MODEL = {
    "vocab_size": 1024,
    "emb_dim": 128,
    "num_heads": 4,
    "head_dim": 32,
    "mlp_dim": 256,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}


class Worker:
    """A child process that answers JSON requests, one per line, and sleeps otherwise.

    The process is restricted to as many cores as it may have threads; XLA derives its number of threads from the cores.

    Args:
      script: the script that serves.
      arguments: for the `start` of `serve`.
      threads: of the process.
      python: the interpreter.
      package: a folder from which Python imports packages first, such as another checkout.
    """

    def __init__(
        self,
        script: str,
        arguments: Mapping[str, Any],
        threads: int,
        python: str = sys.executable,
        package: str | None = None,
    ):
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), JAX_PLATFORMS="cpu")
        if package is not None:
            environment["PYTHONPATH"] = package
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        self._process = subprocess.Popen(
            [python, script, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.about = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"A benchmark worker ended early: {self._process.args}")
        return json.loads(line)


def serve(start: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[..., Any]]]) -> None:
    """Runs the worker's side: builds from the arguments, and answers requests until the parent closes the pipe.

    Args:
      start: function from the arguments to a description for the parent and a function that answers a request's keywords.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print
    about, answer = start(json.loads(sys.argv[1]))
    answers.write(json.dumps(about) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(**json.loads(line))) + "\n")
        answers.flush()


@dataclasses.dataclass
class Clock:
    """Wall and CPU seconds of a block; the CPU seconds of all threads of the process count."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def run_for(seconds: float, step: Callable[[int], Any]) -> dict[str, float]:
    """Calls `step(0)`, `step(1)`, ... for at least `seconds`; returns the number of calls, wall and CPU seconds."""
    calls = 0
    with Clock() as clock:
        while calls == 0 or time.perf_counter() - clock._wall < seconds:
            step(calls)
            calls += 1
    return {"calls": calls, "wall": clock.wall, "cpu": clock.cpu}


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclasses.dataclass
class Comparison:
    """Neighbouring measurements of two workers: rates of ours and theirs, in the same units."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> np.ndarray:
        """Ours over theirs, pair by pair."""
        return np.asarray(self.ours) / np.asarray(self.theirs)

    def cells(self) -> list[str]:
        """Median rates, median ratio, range of the ratio."""
        ratios = self.ratios
        return [
            f"{np.median(self.ours):.1f}",
            f"{np.median(self.theirs):.1f}",
            f"{np.median(ratios):.2f}",
            f"{ratios.min():.2f}-{ratios.max():.2f}",
        ]


def alternate(
    pairs: int, ours: Callable[[], Any], theirs: Callable[[], Any]
) -> list[tuple[Any, Any]]:
    """Measures both sides in turn; the order alternates between pairs."""
    results = []
    for index in range(pairs):
        if index % 2:
            second, first = theirs(), ours()
            results.append((first, second))
        else:
            first = ours()
            results.append((first, theirs()))
    return results


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints an aligned Markdown table with right-aligned numbers."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    load = os.getloadavg()[1]
    print(f"\n{title} (load average {load:.1f} on {os.cpu_count()} cores)\n")
    print(line(header))
    print(line(["-" * width for width in widths]))
    for row in rows:
        print(line(row))
    sys.stdout.flush()
