"""Figures of the studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def dot_plot(panels: Mapping[str, Mapping[str, Sequence[float]]], label: str, path: Path) -> None:
    """Draws one panel per group with a dot per arm, and its standard deviation over seeds."""
    figure = Figure(figsize=(3.4 * len(panels) + 1.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axis, (title, arms) in zip(axes[0], panels.items(), strict=True):
        for row, values in enumerate(arms.values()):
            deviation = np.std(values, ddof=1) if len(values) > 1 else 0
            axis.errorbar(np.mean(values), row, xerr=deviation, fmt="o", color="C0", capsize=2)
        axis.set_yticks(range(len(arms)), list(arms))
        axis.set_title(title, fontsize=10)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.savefig(path, dpi=110)


def line_plot(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    labels: tuple[str, str],
    path: Path,
) -> None:
    """Draws one panel per group with a line per arm over a logarithmic axis, and its standard deviation over seeds."""
    figure = Figure(figsize=(4.6 * len(panels) + 2.2, 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, arms) in zip(axes[0], panels.items(), strict=True):
        # Error bars of different arms stand side by side.
        apart = min(0.012, 0.06 / max(len(arms), 1))
        for number, (arm, points) in enumerate(arms.items()):
            x = np.array(list(points)) * (1 + apart * number)
            means = [np.mean(values) for values in points.values()]
            deviations = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in points.values()]
            axis.errorbar(x, means, yerr=deviations, marker="o", ms=3, capsize=2, label=arm)
        axis.set_xscale("log")
        axis.set_xticks(list(points), [f"{p:g}" for p in points])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(labels[0])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(labels[1])
    handles = max(
        (axis.get_legend_handles_labels() for axis in axes[0]), key=lambda each: len(each[0])
    )
    figure.legend(*handles, fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=110)


def curves_plot(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Sequence[float]]]]],
    labels: tuple[str, str],
    path: Path,
) -> None:
    """Draws one panel per group with a curve per arm through (x, values over seeds), and the standard errors of the means."""
    figure = Figure(figsize=(4.6 * len(panels) + 2.2, 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, arms) in zip(axes, panels.items(), strict=True):
        for number, (arm, points) in enumerate(arms.items()):
            errors = [
                np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
                for _, values in points
            ]
            axis.errorbar(
                [x for x, _ in points],
                [np.mean(values) for _, values in points],
                yerr=errors,
                marker="o",
                ms=3,
                capsize=2,
                label=arm,
                # Two curves of an arm share a colour.
                color=f"C{number // 2}",
                linestyle="-" if number % 2 == 0 else "--",
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(labels[0])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(labels[1])
    handles = max(
        (axis.get_legend_handles_labels() for axis in axes), key=lambda each: len(each[0])
    )
    figure.legend(*handles, fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=110)
