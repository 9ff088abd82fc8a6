"""The plots of a report. Each says on its axes what is better, and draws no interval that does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.evaluation.page import figures
from jaxalign.evaluation.page.elements import Html

# A legend of more lines stands below the plot, and names no more than these.
_MOST_INSIDE, _MOST_NAMED = 4, 16


class Point(NamedTuple):
    """A policy's mean reward at a place on the other axis; without an interval, its ends are None.

    Points with the same line are joined in the order of their steps, and then carry their labels.
    """

    name: str
    line: str
    step: int
    label: str
    x: float
    x_error: float | None
    reward: float
    low: float | None
    high: float | None


def reward_against(
    caption: str, points: Sequence[Point], x_label: str, judge: str, note: str
) -> Html:
    """Draws one point for each policy, step or round."""

    def draw(axis: Any) -> None:
        lines = list(dict.fromkeys(point.line for point in points))
        for index, line in enumerate(lines):
            own = sorted((p for p in points if p.line == line), key=lambda p: p.step)
            colour = figures.colour(index)
            if len(own) > 1:
                axis.plot([p.x for p in own], [p.reward for p in own], color=colour, linewidth=1)
            for point in own:
                interval = None
                if point.low is not None and point.high is not None:
                    interval = [[point.reward - point.low], [point.high - point.reward]]
                axis.errorbar(
                    point.x,
                    point.reward,
                    xerr=point.x_error,
                    yerr=interval,
                    fmt=figures.marker(index),
                    capsize=3,
                    color=colour,
                    label=figures.shortened(point.name) if point is own[0] else None,
                )
                if len(own) > 1:
                    axis.annotate(
                        figures.shortened(point.label),
                        (point.x, point.reward),
                        xytext=(7, 6),
                        textcoords="offset points",
                        color=colour,
                        fontsize=9,
                    )
        axis.set_xlabel(x_label)
        axis.set_ylabel(f"mean score by {judge}\n(higher is better)")
        axis.margins(x=0.1, y=0.15)
        axis.legend()

    return figures.figure(caption, draw, note=note)


def win_rate_bars(
    caption: str, rates: Mapping[str, Mapping[str, Any]], first: str, note: str
) -> Html:
    """Draws the win rate of each policy over the first one as a bar, with its interval if it has one."""

    def draw(axis: Any) -> None:
        for place, rate in enumerate(rates.values()):
            low, high = rate.get("low"), rate.get("high")
            error = None if low is None else [[rate["mean"] - low], [high - rate["mean"]]]
            axis.barh(
                place,
                rate["mean"],
                height=0.55,
                xerr=error,
                color=figures.colour(place + 1),
                alpha=0.75,
                error_kw={"ecolor": figures.reference_colour(), "capsize": 4},
            )
            shown = f"{rate['mean']:.3f}"
            axis.text(0.01, place, shown, va="center", fontsize=10)
        axis.set_yticks(
            range(len(rates)),
            [
                f"{figures.shortened(name)}\n(n = {rate['count']})"
                if "count" in rate
                else figures.shortened(name)
                for name, rate in rates.items()
            ],
        )
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.axvline(0.5, color=figures.reference_colour(), linewidth=1, linestyle="--")
        axis.set_xlabel(f"win rate over {figures.shortened(first)} (above 0.5 is better)")
        axis.grid(False, axis="y")

    return figures.figure(caption, draw, height=1.3 + 0.55 * len(rates), note=note)


def calibration(caption: str, by_responses: Mapping[str, Mapping[str, Any]], note: str) -> Html:
    """Draws the mean target by bins of V; the dashed line is V itself. A bin of one response has no standard error."""

    def draw(axis: Any) -> None:
        bins = [each for found in by_responses.values() for each in found["bins"]]
        ends = [min(b["mean_value"] for b in bins), max(b["mean_value"] for b in bins)]
        axis.plot(
            ends,
            ends,
            "--",
            color=figures.reference_colour(),
            linewidth=1.2,
            label="target = V (the optimum)",
        )
        for index, (where, found) in enumerate(by_responses.items()):
            axis.errorbar(
                [b["mean_value"] for b in found["bins"]],
                [b["mean_target"] for b in found["bins"]],
                yerr=[b["standard_error"] if b["count"] > 1 else np.nan for b in found["bins"]],
                fmt=figures.marker(index) + "-",
                capsize=3,
                color=figures.colour(index),
                label=f"{where} responses (n = {found['count']})",
            )
        axis.set_xlabel("V(prompt)")
        axis.set_ylabel("mean of r - tau * log-ratio\n(best on the dashed line)")
        axis.legend()

    return figures.figure(caption, draw, note=note)


def reward_by_length(
    caption: str,
    bins: Mapping[str, Sequence[tuple[float, float]]],
    judge: str,
    note: str,
) -> Html:
    """Draws the mean score of each policy's responses by bins of their length."""

    def draw(axis: Any) -> None:
        for index, (name, points) in enumerate(bins.items()):
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=figures.colour(index),
                marker=figures.marker(index),
                label=figures.shortened(name),
            )
        axis.set_xlabel("length of the responses, mean of a bin (tokens;\nneither end is better)")
        axis.set_ylabel(f"mean score by {judge}\n(higher is better)")
        axis.legend()

    return figures.figure(caption, draw, note=note)


def log_ratio_distribution(
    caption: str, by_policy: Mapping[str, Sequence[float]], order: Sequence[str], note: str
) -> Html:
    """Draws the shares of logged responses by their log-ratio, with equal bins for all policies."""

    def draw(axis: Any) -> None:
        together = np.concatenate([np.asarray(values) for values in by_policy.values()])
        edges = np.histogram_bin_edges(together, bins=30)
        for name, values in by_policy.items():
            axis.hist(
                values,
                bins=edges,
                weights=np.full(len(values), 1 / len(values)),
                histtype="step",
                linewidth=1.8,
                color=figures.colour(order.index(name)),
                label=f"{figures.shortened(name)} (n = {len(values)})",
            )
        axis.axvline(0, color=figures.reference_colour(), linewidth=1, linestyle="--")
        axis.set_xlabel(
            "log(policy / reference) of a logged response, nats\n(right: more likely than before)"
        )
        axis.set_ylabel("share of responses")
        axis.legend()

    return figures.figure(caption, draw, note=note)


def curves(
    caption: str, lines: Mapping[str, Mapping[str, np.ndarray]], metric: str, direction: str
) -> Html:
    """Draws a metric of runs of one objective against the step: thin lines in training, lines with markers on other splits.

    Args:
      caption: what the plot shows.
      lines: run -> split -> [points, 2] steps and values.
      metric: the metric.
      direction: which end is better.
    """

    count = sum(map(len, lines.values()))

    def draw(axis: Any) -> None:
        for index, (run, by_split) in enumerate(lines.items()):
            for split, points in by_split.items():
                training = split == "train"
                axis.plot(
                    points[:, 0],
                    points[:, 1],
                    color=figures.colour(index),
                    linewidth=1.1 if training else 1.8,
                    alpha=0.7 if training else 1.0,
                    marker=("." if training else figures.marker(index)),
                    markersize=4 if training else 5,
                    label=f"{figures.shortened(run)}, {split}",
                )
        axis.set_xlabel("step")
        axis.set_ylabel(metric)
        axis.set_title(direction, fontsize=10, loc="left")
        if count <= _MOST_INSIDE:
            axis.legend(fontsize=9)
        else:
            handles = axis.get_legend_handles_labels()[0][:_MOST_NAMED]
            axis.figure.legend(handles=handles, loc="outside lower center", ncols=1, fontsize=8)

    below = 0.0 if count <= _MOST_INSIDE else 0.17 * min(count, _MOST_NAMED)
    note = f"The legend names {_MOST_NAMED} of {count} lines." if count > _MOST_NAMED else ""
    return figures.figure(caption, draw, width=4.4, height=3.2 + below, note=note)


def by_round(
    caption: str,
    points: Sequence[tuple[str, float, float | None]],
    measure: str,
    direction: str,
    note: str,
) -> Html:
    """Draws a measure after each round, with its standard error where there is one.

    Args:
      caption: what the plot shows.
      points: (round, value, standard error or None) in the order of rounds.
      measure: the measure.
      direction: which end is better.
      note: what must be known to read the plot.
    """

    def draw(axis: Any) -> None:
        axis.errorbar(
            range(len(points)),
            [value for _, value, _ in points],
            yerr=[np.nan if error is None else error for _, _, error in points],
            fmt=figures.marker(0) + "-",
            capsize=3,
            color=figures.colour(0),
        )
        axis.set_xticks(range(len(points)), [name for name, _, _ in points])
        axis.set_xlabel("round")
        axis.set_ylabel(measure)
        axis.set_title(direction, fontsize=10, loc="left")

    return figures.figure(caption, draw, width=4.4, height=3.2, note=note)
