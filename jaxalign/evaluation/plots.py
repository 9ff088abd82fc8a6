"""Figures of an evaluation, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from jaxalign.evaluation.calibration import Calibration

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#444444")
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# Metrics that learning curves show first if a run recorded them.
_PREFERRED = (
    "loss",
    "slot_error_rate",
    "log_ratio",
    "residual",
    "value",
    "accuracy",
    "margin",
    "negative_log_prob_per_token",
)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Makes a figure on the Agg canvas without pyplot, so that there is no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: str | Path) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)


def plot_reward_against_kl(points: Sequence[Mapping[str, Any]], path: str | Path) -> str:
    """Plots one point for each policy, with the reward's interval and the KL's standard error.

    Args:
      points: mappings with `name`, `kl`, `kl_error`, `reward`, `low`, `high`.
      path: the PNG to write.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(1, 1, 6.0, 4.2)
        axis = axes[0, 0]
        for i, point in enumerate(points):
            colour = _COLOURS[i % len(_COLOURS)]
            reward = point["reward"]
            axis.errorbar(
                point["kl"],
                reward,
                xerr=point["kl_error"],
                yerr=[[reward - point["low"]], [point["high"] - reward]],
                fmt="o",
                markersize=7,
                capsize=3,
                color=colour,
            )
            axis.annotate(
                point["name"],
                (point["kl"], reward),
                xytext=(8, 7),
                textcoords="offset points",
                color=colour,
            )
        axis.set_xlabel("KL from the reference policy (nats a response)")
        axis.set_ylabel("mean reward")
        axis.set_title("Reward against KL")
        axis.margins(x=0.18, y=0.15)
        return _save(figure, path)


def plot_calibration(results: Mapping[str, Mapping[str, Calibration]], path: str | Path) -> str:
    """Plots the mean target by bins of V, one panel for each policy, with a line for held-out and for training responses.

    The dashed line is V itself, which the targets reach at the optimum.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(1, len(results), 4.2, 4.6)
        for i, (name, by_responses) in enumerate(results.items()):
            axis = axes[0, i]
            low = min(each.bins[0]["mean_value"] for each in by_responses.values())
            high = max(each.bins[-1]["mean_value"] for each in by_responses.values())
            axis.plot([low, high], [low, high], "--", color="#888888", linewidth=1.2, label="V")
            for colour, (where, result) in zip(_COLOURS, by_responses.items(), strict=False):
                axis.errorbar(
                    [each["mean_value"] for each in result.bins],
                    [each["mean_target"] for each in result.bins],
                    yerr=[each["standard_error"] for each in result.bins],
                    fmt="o-",
                    capsize=3,
                    color=colour,
                    label=f"{where}: n = {result.count}, slope {result.slope:.2f}",
                )
            axis.set_xlabel("V(prompt)")
            axis.set_title(name)
            # Below the axes: the error bars leave no room inside.
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
        axes[0, 0].set_ylabel("mean of r - tau * log-ratio ± standard error")
        return _save(figure, path)


def plot_learning_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
    *,
    metrics: Sequence[str] | None = None,
    max_panels: int = 6,
) -> str | None:
    """Plots metrics of runs against steps: thin lines in training, thick lines with dots on other splits.

    Args:
      curves: for every run, the records of its metrics.jsonl ({"step", "split", name: value ...}).
      path: the PNG to write.
      metrics: the metrics to draw; by default those that most runs measured, up to `max_panels`.

    Returns:
      The path, or None if there is nothing to draw.
    """
    names = list(metrics or _common_metrics(curves))[:max_panels]
    if not names:
        return None
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(rows, columns, 4.2, 3.2)
        for axis, metric in zip(axes.flat, names, strict=False):
            for i, records in enumerate(curves.values()):
                for split in dict.fromkeys(str(record.get("split")) for record in records):
                    line = _series(records, split, metric)
                    style: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.55}
                    if split != "train":
                        style = {"linewidth": 1.8, "marker": "o", "markersize": 3.5}
                    if len(line):
                        axis.plot(
                            line[:, 0], line[:, 1], color=_COLOURS[i % len(_COLOURS)], **style
                        )
            axis.set_title(metric)
            axis.set_xlabel("step")
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        figure.legend(
            handles=_legend_handles(list(curves)),
            loc="outside lower center",
            ncols=min(len(curves) + 2, 5),
        )
        return _save(figure, path)


def _legend_handles(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=2.5, label=name)
        for i, name in enumerate(names)
    ]
    train = Line2D([], [], color="#777777", linewidth=1.0, alpha=0.55, label="training")
    held_out = Line2D([], [], color="#777777", marker="o", markersize=3.5, label="held out")
    return [*handles, train, held_out]


def _series(records: Sequence[Mapping[str, Any]], split: str, metric: str) -> np.ndarray:
    points = [
        (record["step"], record[metric])
        for record in records
        if str(record.get("split")) == split and isinstance(record.get(metric), (int, float))
    ]
    return np.array(points, np.float64).reshape(-1, 2)


def _common_metrics(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns metric names; those measured by most runs and on most splits come first."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for run, records in curves.items():
        for record in records:
            for name, value in record.items():
                if name not in ("step", "split") and isinstance(value, (int, float)):
                    seen.setdefault(name, set()).add((run, str(record.get("split"))))

    def rank(name: str) -> tuple[int, int, int, str]:
        place = _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)
        return int(place == len(_PREFERRED)), -len(seen[name]), place, name

    return sorted(seen, key=rank)


def plot_front(
    series: Mapping[str, Sequence[Any]],
    axes: Sequence[str],
    path: str | Path,
    *,
    labels: Sequence[str] = (),
) -> str:
    """Plots two objectives against each other with one line for each method, and returns the path.

    Args:
      series: method -> points (x, y) in the order of its sweep.
      axes: the names of both objectives.
      path: the PNG to write.
      labels: texts beside the points of every method, in the order of the sweep.
    """
    with matplotlib.rc_context(_STYLE):
        figure, grid = _figure(1, 1, 6.0, 4.4)
        plot = grid[0, 0]
        for index, (name, points) in enumerate(series.items()):
            values = np.asarray(points, np.float64).reshape(-1, 2)
            colour = _COLOURS[index % len(_COLOURS)]
            marker = "osD^v"[index % 5]
            plot.plot(values[:, 0], values[:, 1], color=colour, marker=marker, label=name)
            for label, (x, y) in zip(labels, values, strict=False):
                plot.annotate(
                    label, (x, y), textcoords="offset points", xytext=(5, 4), color=colour
                )
        plot.set_xlabel(axes[0])
        plot.set_ylabel(axes[1])
        plot.legend()
        return _save(figure, path)


def plot_by_round(
    series: Mapping[str, Sequence[tuple[str, float, float | None]]], path: str | Path
) -> str:
    """Plots each measure of rounds in a panel of its own, and returns the path.

    Args:
      series: measure -> (name of the round, value, standard error or None), in the order of rounds.
      path: the PNG to write.
    """
    order = list(dict.fromkeys(name for points in series.values() for name, _, _ in points))
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(rows, columns, 3.6, 2.8)
        for axis, (measure, points) in zip(axes.flat, series.items(), strict=False):
            places = [order.index(name) for name, _, _ in points]
            axis.errorbar(
                places,
                [value for _, value, _ in points],
                yerr=[error or 0.0 for _, _, error in points],
                marker="o",
                capsize=3,
                color=_COLOURS[0],
            )
            axis.set_xticks(range(len(order)), order)
            axis.set_xlabel("round")
            axis.set_title(measure)
        for axis in axes.flat[len(series) :]:
            axis.set_visible(False)
        return _save(figure, path)
