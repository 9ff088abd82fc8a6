"""Page of the frontiers.

python -m studies.frontiers_report --runs runs/frontiers
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.formatting import spread
from studies.frontiers import SEEDS, Size, chosen_rate, run_name
from studies.frontiers_curves import LARGEST_KL, Frontier, area, frontier, win_rate
from studies.frontiers_tasks import METHODS, TASKS

FIGURES = Path("docs/results")
AT = (0.1, 0.25, 0.5, 1.0, 2.0)
EQUAL_KL = 0.5
BASE = "dro_v"


def report(folder: Path, figures: Path = FIGURES) -> str:
    """Returns the page as Markdown, and draws its figures."""
    size = Size()
    lines = [
        "# Reward against KL\n",
        "    python -m studies.frontiers --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2",
        "    python -m studies.frontiers_report\n",
        "Question: where does DRO-V stand at equal KL, and what does V buy against V = 0, one number for V and DRO-P, as prompts differ",
        "more?\n",
        *_CONCLUSION,
        *_setup(size),
    ]
    drawn = {}
    for name, task in TASKS.items():
        curves = {method: frontiers_of(folder, name, method) for method in task.methods}
        lines += _task(folder, size, name, curves)
        drawn[name] = curves
    _draw_frontiers(drawn, figures / "frontiers.png")
    _draw_grids(folder, figures / "frontiers_grid.png")
    lines += [
        "\n![Frontiers](frontiers.png)\n",
        "Every strength and checkpoint on `rnnlg`, seed means; a line joins the checkpoints of a strength.\n",
        "![Strengths](frontiers_grid.png)",
    ]
    return "\n".join(lines) + "\n"


_CONCLUSION: list[str] = []


def _setup(size: Size) -> list[str]:
    updates = ", ".join(map(str, size.checkpoints))
    rates = ", ".join(f"{rate:g}" for rate in size.learning_rates)
    return [
        f"Every method reads {size.samples} samples to each of {size.acts:,} acts from its start, a fine-tuned T5 of a million parameters,",
        f"with exact slot errors as feedback. Five strengths, {len(SEEDS)} seeds, checkpoints after {updates} updates of about 30",
        f"responses at a constant learning rate, which is one of {rates}: the one with the largest area under the",
        "validation frontier at the middle strength. A frontier has the points that no other beats in *validation* reward at a KL no",
        "larger; tables show their *test* measures, linear between points. Area: mean gain over KL from 0 to",
        f"{LARGEST_KL:g}, constant beyond the last point. KL: nats a response from the start, summed over the vocabulary at every position",
        "of samples. Mean and standard deviation over seeds; a number in brackets counts the seeds that reach a KL.\n",
    ]


def results(folder: Path, name: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Returns the finished runs of a method's strengths."""
    found = (
        read_result(folder, run_name(name, method, strength, seed))
        for strength in METHODS[method].strength[1]
    )
    return [result for result in found if result is not None]


def frontiers_of(folder: Path, name: str, method: str) -> list[Frontier]:
    """Returns the frontier of every seed whose strengths are all finished."""
    found = []
    for seed in SEEDS:
        runs = results(folder, name, method, seed)
        if len(runs) == len(METHODS[method].strength[1]):
            found.append(frontier([run["points"] for run in runs], runs[0]["start"]))
    return found


def _task(folder: Path, size: Size, name: str, curves: dict[str, list[Frontier]]) -> list[str]:
    lines = [
        f"\n## {name}\n",
        "Test reward at a KL:\n",
        f"| method | {' | '.join(f'{kl:g}' for kl in AT)} | area | strength of the largest area | learning rate | seeds |",
        "|---" * (len(AT) + 5) + "|",
    ]
    for method, found in curves.items():
        cells = [_at(found, kl) for kl in AT]
        rate = chosen_rate(folder, size, name, method)
        lines.append(
            f"| {method} | {' | '.join(cells)} | {spread([area(each, 'test') for each in found])} | {_best(folder, name, method)} | "
            f"{_rate(size, rate)} | {len(found)} |"
        )
    lines += [
        f"\nAt a KL of {EQUAL_KL:g}: win rate against {BASE} (nearest points of both, within 30 % of that KL), length and distinct-2.\n",
        "| method | win rate | length | distinct-2 |",
        "|---|---|---|---|",
    ]
    for method, found in curves.items():
        measures = [
            spread([y for each in found if (y := each.at(EQUAL_KL, key)) is not None], digits)
            for key, digits in (("length", 1), ("distinct_2", 3))
        ]
        lines.append(
            f"| {method} | {_wins(found, curves.get(BASE, []))} | {' | '.join(measures)} |"
        )
    return lines


def _at(found: Sequence[Frontier], kl: float) -> str:
    values = [y for each in found if (y := each.at(kl)) is not None]
    return spread(values) + (f" ({len(values)})" if 0 < len(values) < len(found) else "")


def _wins(found: Sequence[Frontier], base: Sequence[Frontier]) -> str:
    rates = []
    for one, other in zip(found, base, strict=False):
        points = one.nearest(EQUAL_KL), other.nearest(EQUAL_KL)
        if points[0] is not None and points[1] is not None and one is not other:
            rates.append(win_rate(points[0], points[1]))
    return spread(rates)


def _best(folder: Path, name: str, method: str) -> str:
    """Returns the strength whose own frontier has the largest validation area, with a mark where it is the end of the grid."""
    strengths = METHODS[method].strength[1]
    areas: dict[float, list[float]] = {}
    for seed in SEEDS:
        for run in results(folder, name, method, seed):
            found = area(frontier([run["points"]], run["start"]))
            areas.setdefault(run["points"][0]["strength"], []).append(found)
    if not areas:
        return "-"
    best = max(areas, key=lambda strength: float(np.mean(areas[strength])))
    return f"{best:g}" + (" (edge)" if best in (strengths[0], strengths[-1]) else "")


def _rate(size: Size, rate: float | None) -> str:
    if rate is None:
        return "-"
    edge = rate in (size.learning_rates[0], size.learning_rates[-1])
    return f"{rate:g}" + (" (edge)" if edge else "")


def _draw_frontiers(drawn: dict[str, dict[str, list[Frontier]]], path: Path) -> None:
    figure = Figure(figsize=(4.6 * len(drawn) + 2.4, 4.2), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    colours = {method: f"C{number}" for number, method in enumerate(METHODS)}
    for axis, (name, curves) in zip(axes, drawn.items(), strict=True):
        for method, found in curves.items():
            ends = [max(point["test"]["kl"] for point in each.points) for each in found]
            if not found or min(ends) <= 0:
                continue
            grid = np.linspace(0, min(*ends, LARGEST_KL), 41)
            values = np.array([[each.at(x) for x in grid] for each in found], float)
            mean = values.mean(axis=0)
            axis.plot(grid, mean, color=colours[method], label=method)
            if len(found) > 1:
                error = values.std(axis=0, ddof=1) / np.sqrt(len(found))
                axis.fill_between(
                    grid, mean - error, mean + error, color=colours[method], alpha=0.15, lw=0
                )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("KL from the start, nats a response")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test reward (minus slot errors), higher is better")
    handles = max(
        (axis.get_legend_handles_labels() for axis in axes), key=lambda each: len(each[0])
    )
    if handles[0]:
        figure.legend(*handles, fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=110)


def _draw_grids(folder: Path, path: Path) -> None:
    name = "rnnlg"
    columns = 5
    rows = -(-len(METHODS) // columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis, method in zip(axes, METHODS, strict=False):
        macro, strengths = METHODS[method].strength
        for number, strength in enumerate(strengths):
            runs = [
                result
                for seed in SEEDS
                if (result := read_result(folder, run_name(name, method, strength, seed)))
            ]
            if not runs:
                continue
            points = [[run["start"], *run["points"]] for run in runs]
            x, y = (
                np.mean([[p["test"][key] for p in each] for each in points], axis=0)
                for key in ("kl", "reward")
            )
            axis.plot(
                x, y, marker="o", ms=3, color=f"C{number}", label=f"{macro.lower()} {strength:g}"
            )
        axis.set_title(method, fontsize=9)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=6)
    for axis in axes[len(METHODS) :]:
        axis.set_visible(False)
    figure.supxlabel("KL from the start, nats a response", fontsize=9)
    figure.supylabel("test reward", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "frontiers", report)


if __name__ == "__main__":
    main()
