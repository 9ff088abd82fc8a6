"""The page and the figure of the front over two ratings: ``python -m studies.pareto_front_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.pareto import hypervolume, non_dominated
from jaxalign.evaluation.plots import plot_front
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.equal_footing import SCORES
from studies.formatting import spread
from studies.pareto_front import BETA, LEARNING_RATE, METHODS, SEEDS, UPDATES, WEIGHTS

FIGURE = Path("docs/results/pareto_front.png")


def report(folder: Path) -> str:
    """Returns the page and draws the figure."""
    found = {
        method: {
            weight: [
                result["spearman"]
                for seed in SEEDS
                if (result := read_result(folder, f"{method}/w{weight:g}/seed{seed}"))
            ]
            for weight in WEIGHTS
        }
        for method in METHODS
    }
    lines = [
        "# Several objectives: the front over two human ratings\n",
        "    python -m studies.pareto_front --data <folder with nlg_ratings.multi.*.jsonl> --workers 2",
        "    python -m studies.pareto_front_report\n",
        "Sentences with ratings of informativeness, naturalness and quality (`nlg_ratings`). A weighting w asks for",
        "`w * informativeness + (1 - w) * naturalness`; neither method is trained on quality. MODPO labels pairs by informativeness",
        "and takes naturalness as margin. The table shows the Spearman correlation of the log-ratio with each rating on held-out",
        f"sentences, mean and standard deviation over {len(SEEDS)} seeds (each with its own SFT policy). Both methods use beta {BETA},",
        f"learning rate {LEARNING_RATE:g} and {UPDATES} updates; no hyperparameter was searched.\n",
        f"| method | w | {' | '.join(SCORES)} | seeds | on the front |",
        "|---" * (len(SCORES) + 4) + "|",
    ]
    points = {
        (method, weight): np.array([np.mean([run[s] for run in runs]) for s in SCORES[:2]])
        for method, by_weight in found.items()
        for weight, runs in by_weight.items()
        if runs
    }
    front = dict(zip(points, non_dominated(np.array(list(points.values()))), strict=True))
    for method, by_weight in found.items():
        for weight, runs in by_weight.items():
            if runs:
                cells = [spread([run[score] for run in runs]) for score in SCORES]
                on_front = "yes" if front[method, weight] else ""
                lines.append(
                    f"| {METHODS[method]} | {weight:g} | {' | '.join(cells)} | {len(runs)} | {on_front} |"
                )
    lines += ["", "Area between each front and correlations of 0, over seeds:\n"]
    for method, label in METHODS.items():
        areas = [
            hypervolume(np.array(series), np.zeros(2))
            for seed in range(len(SEEDS))
            if len(series := _of_seed(found[method], seed)) == len(WEIGHTS)
        ]
        if areas:
            lines.append(f"- {label}: {spread(areas)}")
    figure = {METHODS[m]: [points[m, w] for w in WEIGHTS if (m, w) in points] for m in METHODS}
    plot_front(figure, SCORES[:2], FIGURE, labels=[f"{w:g}" for w in WEIGHTS])
    lines += ["", f"![Correlation with both ratings for every weighting]({FIGURE.name})", ""]
    return "\n".join(lines)


def _of_seed(by_weight: dict[float, list[dict[str, Any]]], seed: int) -> list[list[float]]:
    return [
        [runs[seed][score] for score in SCORES[:2]]
        for runs in by_weight.values()
        if len(runs) > seed
    ]


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "pareto_front", report)


if __name__ == "__main__":
    main()
