"""The trials of a sweep: which values each has, how it runs as a process of its own, and what it measured."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.runs.metrics import METRICS_FILE, read_metrics

TRAIN = (sys.executable, "-m", "jaxalign", "train")
SUMMARY_FILE = "summary.json"
LOG_FILE = "log.txt"
_RANGE = re.compile(r"(uniform|log_uniform)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")
_NAME = re.compile(r"[A-Za-z_][\w./]*")


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval from which random trials draw; on a logarithmic scale if asked."""

    low: float
    high: float
    logarithmic: bool

    def draw(self, generator: np.random.Generator) -> str:
        """Returns a value with four digits."""
        if self.logarithmic:
            value = np.exp(generator.uniform(np.log(self.low), np.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        return f"{value:.4g}"


Values = Sequence[str] | Range


# Compared by identity, because values are no key; no two trials of a sweep have the same name.
@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The values of one run, as text, by the names of macros or gin parameters."""

    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """Returns the name of its folder: the values in words, and a digest that tells similar ones apart."""
        written = "-".join(f"{name.rpartition('.')[2]}_{value}" for name, value in self.values.items())  # fmt: skip
        digest = hashlib.sha256(json.dumps(dict(self.values), sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', written)[:80]}-{digest[:6]}"


def join_values(parts: Sequence[str]) -> list[str]:
    """Puts together what a list flag has split at commas: a part that begins with no ``NAME=`` belongs to the one before."""
    joined: list[str] = []
    for part in parts:
        name, equals, _ = part.partition("=")
        if joined and not (equals and _NAME.fullmatch(name.strip().removeprefix("--"))):
            joined[-1] += f",{part}"
        else:
            joined.append(part)
    return joined


def parse_values(text: str) -> tuple[str, Values]:
    """Reads ``NAME=a,b,c``, ``NAME=[a, b]``, ``NAME=uniform(low, high)`` or ``NAME=log_uniform(low, high)``.

    Raises:
      UserError: it has no such form.
    """
    name, equals, written = (part.strip() for part in text.partition("="))
    name = name.removeprefix("--").removeprefix("gin.")
    if not equals or not _NAME.fullmatch(name):
        raise UserError(f"--values={text} is not of the form NAME=a,b,c")
    if found := _RANGE.fullmatch(written):
        kind, *ends = found.groups()
        try:
            low, high = map(float, ends)
        except ValueError:
            raise UserError(f"--values={text}: {ends} are no numbers") from None
        if not (low < high and np.isfinite([low, high]).all()) or (kind[0] == "l" and low <= 0):
            raise UserError(f"--values={text}: needs {'0 < ' if kind[0] == 'l' else ''}low < high")
        return name, Range(low, high, kind == "log_uniform")
    inside = written[1:-1] if written[:1] + written[-1:] in ("[]", "()") else written
    values = [value.strip() for value in _split(inside)]
    if not values or not all(values) or len(set(values)) < len(values):
        raise UserError(f"--values={text}: give different values, separated by commas")
    return name, values


def _split(text: str) -> list[str]:
    """Splits at the commas that are outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def trials_of(values: Mapping[str, Values], count: int, seed: int) -> list[Trial]:
    """Returns all combinations of the values, or `count` random ones.

    Raises:
      UserError: a range needs a count, or there are not so many combinations.
    """
    ranges = [name for name, given in values.items() if isinstance(given, Range)]
    if not count:
        if ranges:
            raise UserError(
                f"{ranges[0]} has a range, from which random trials draw; give their number with --trials"
            )
        lists = [list(given) for given in values.values() if not isinstance(given, Range)]
        return [Trial(dict(zip(values, chosen, strict=True))) for chosen in itertools.product(*lists)]  # fmt: skip
    generator = np.random.default_rng(seed)
    if not ranges:
        everything = trials_of(values, 0, seed)
        if count > len(everything):
            raise UserError(f"--trials={count} exceeds the {len(everything)} combinations of values")  # fmt: skip
        return [everything[i] for i in generator.permutation(len(everything))[:count]]
    drawn = (
        Trial(
            {
                name: given.draw(generator)
                if isinstance(given, Range)
                else given[int(generator.integers(len(given)))]
                for name, given in values.items()
            }
        )
        for _ in range(count)
    )
    return list({trial.name: trial for trial in drawn}.values())


def run_trial(folder: Path, trial: Trial, arguments: Sequence[str], core: int | None) -> int:
    """Trains one trial in a process of its own, whose output goes to ``log.txt``; returns its exit code.

    Args:
      folder: the folder of the sweep.
      trial: the trial.
      arguments: the flags of `jaxalign train` that all trials share.
      core: the processor core on which it runs, or None.
    """
    place = folder / "trials" / trial.name
    place.mkdir(parents=True, exist_ok=True)
    settings = [f"--gin.{name}={value}" for name, value in trial.values.items()]
    command = [*TRAIN, *arguments, *settings, f"--MODEL_DIR={place}"]

    with (
        (place / LOG_FILE).open("ab") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        if core is not None:
            # The process has not started JAX yet, so that all its threads inherit the core.
            os.sched_setaffinity(process.pid, {core})
        return process.wait()


def has_ended(folder: Path, trial: Trial) -> bool:
    """Returns whether a trial has done all its steps, or ended early by its patience."""
    place = folder / "trials" / trial.name
    if not (place / SUMMARY_FILE).exists():
        return False
    summary = untrusted.read_json_object(place / SUMMARY_FILE, inside=place)
    return bool(
        summary.get("step") == summary.get("train_steps")
        or summary.get("ended_early_with_patience")
    )


def last_line(folder: Path, trial: Trial) -> str:
    """Returns the last line that a trial wrote."""
    path = folder / "trials" / trial.name / LOG_FILE
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def measured(folder: Path, trial: Trial, metric: str, mode: str) -> dict[str, Any] | None:
    """Returns the best ``value`` of a metric and its ``step``, of a trial that has ended; None if it has not.

    Args:
      folder, trial: the sweep and the trial.
      metric: ``<split>/<metric>`` as in ``metrics.jsonl``.
      mode: ``min`` or ``max``.

    Raises:
      UserError: the run has no such metric.
    """
    if not has_ended(folder, trial):
        return None
    place = folder / "trials" / trial.name
    split, _, name = metric.rpartition("/")
    records = read_metrics(place / METRICS_FILE, split)
    found = [
        (float(record[name]), record["step"])
        for record in records
        if isinstance(record.get(name), int | float) and np.isfinite(record[name])
    ]
    if not found:
        known = sorted(
            {
                f"{record['split']}/{key}"
                for record in read_metrics(place / METRICS_FILE)
                for key in record.keys() - {"step", "split"}
            }
        )
        raise UserError(
            f"{place} did not measure {metric!r}; it has {', '.join(known) or 'no metrics'}"
        )
    value, step = (max if mode == "max" else min)(found, key=lambda each: each[0])
    return {"value": value, "step": step}
