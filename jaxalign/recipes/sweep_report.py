"""The table, the plot and the JSON of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxalign import files
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.sweep_trials import Trial

SEED = "RANDOM_SEED"
# What changes how a run learns, and not what its loss means.
_OF_TRAINING = (
    SEED, "LEARNING_RATE", "VALUE_LEARNING_RATE", "WARMUP_STEPS", "SCHEDULE", "BATCH_SIZE", "MICROBATCHES", "TRAIN_STEPS", "DROPOUT_RATE",
)  # fmt: skip


def write_report(
    folder: Path,
    found: Mapping[Trial, Mapping[str, Any] | None],
    failed: Mapping[Trial, str],
    metric: str,
    mode: str,
) -> dict[str, Any]:
    """Writes ``sweep.json``, ``sweep.md`` and ``sweep.png``, and returns the content of the first with ``report``, the text of the second.

    Args:
      folder: of the sweep.
      found: the measurement of each trial that has ended.
      failed: the last line of each trial that failed.
      metric, mode: what ranks them.
    """
    rows = _rows(found, mode)
    content: dict[str, Any] = {
        "metric": metric,
        "mode": mode,
        "ranked": rows,
        "failed": [{"values": dict(t.values), "told": told} for t, told in failed.items()],
    }
    report = _page(rows, failed, metric, mode, len(found))
    files.write_text(folder / "sweep.json", json.dumps(content, indent=1) + "\n")
    files.write_text(folder / "sweep.md", report)
    if rows:
        _plot(rows, metric, mode, folder / "sweep.png")
    return {**content, "report": report}


def _rows(found: Mapping[Trial, Mapping[str, Any] | None], mode: str) -> list[dict[str, Any]]:
    """Returns the measurements by values without the seed, best first."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for trial, measurement in found.items():
        if measurement is not None:
            key = tuple((name, value) for name, value in trial.values.items() if name != SEED)
            groups.setdefault(key, []).append(measurement)
    rows = [
        {
            "values": dict(key),
            "mean": float(np.mean([each["value"] for each in group])),
            "deviation": float(np.std([each["value"] for each in group], ddof=1)) if len(group) > 1 else None,
            "runs": len(group),
            "steps": [each["step"] for each in group],
        }
        for key, group in groups.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row["mean"], reverse=mode == "max")


def _page(
    rows: Sequence[Mapping[str, Any]],
    failed: Mapping[Trial, str],
    metric: str,
    mode: str,
    trials: int,
) -> str:
    better = "less" if mode == "min" else "more"
    lines = [f"# Sweep by {metric}\n", f"{trials} trials; {better} is better; the best evaluated step of each run counts.\n"]  # fmt: skip
    if rows:
        table = [
            {
                **row["values"],
                metric: f"{row['mean']:.4g}"
                + (f" ± {row['deviation']:.2g}" if row["deviation"] is not None else ""),
                "runs": row["runs"],
                "best step": ", ".join(map(str, row["steps"])),
            }
            for row in rows
        ]
        lines += [markdown_table(table), ""]
        lines += [note for note in (_edges(rows), _of_objective(rows, metric)) if note]
        flags = " ".join(f"--gin.{name}={value}" for name, value in rows[0]["values"].items())
        lines.append(f"Best: `{flags}`\n")
    lines += [f"Failed: {trial.name}: {told}\n" for trial, told in failed.items()]
    return "\n".join(lines)


def _of_objective(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Warns of a loss that may mean something else in every row."""
    names = [name for name in rows[0]["values"] if name not in _OF_TRAINING]
    if not metric.endswith("loss") or not names:
        return ""
    return (
        f"If {' or '.join(names)} is part of the objective, losses with different values measure different things: rank by another metric "
        "(--metric), or judge the runs with `jaxalign evaluate`.\n"
    )


def _edges(rows: Sequence[Mapping[str, Any]]) -> str:
    """Names the parameters whose best value is the smallest or the largest one that was tried, so that a better one may lie beyond."""
    found = []
    for name, best in rows[0]["values"].items():
        numbers = _numbers([row["values"][name] for row in rows])
        if numbers is not None and len(set(numbers)) > 2 and float(best) in (min(numbers), max(numbers)):  # fmt: skip
            found.append(f"{name} ({best})")
    if not found:
        return ""
    return f"At the edge of what was tried, so that a better value may lie beyond: {', '.join(found)}.\n"


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _plot(rows: Sequence[Mapping[str, Any]], metric: str, mode: str, path: Path) -> None:
    """Draws the metric against each name that has several values."""
    names = [
        name for name in rows[0]["values"] if len({row["values"][name] for row in rows}) > 1
    ] or list(rows[0]["values"])[:1]
    figure = Figure(figsize=(3.6 * len(names) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        written = [row["values"][name] for row in rows]
        numbers = _numbers(written)
        if numbers is None:
            labels = sorted(set(written))
            numbers = [float(labels.index(value)) for value in written]
            axis.set_xticks(range(len(labels)), labels)
        elif min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
            axis.set_xscale("log")
        axis.errorbar(
            numbers,
            [row["mean"] for row in rows],
            yerr=[row["deviation"] or 0 for row in rows],
            fmt="o",
            ms=4,
            capsize=2,
        )
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{metric} ({'less' if mode == 'min' else 'more'} is better)")
    figure.savefig(path, dpi=110)
