"""The page and the figure of distillation: ``python -m studies.distillation_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.plots import plot_front
from jaxalign.evaluation.tables import markdown_table
from studies import distillation
from studies.command_line import write_report
from studies.distillation import ARMS, SEEDS
from studies.formatting import finished, spread, unfinished

FIGURE = Path("docs/results/distillation.png")
BASE = "forward_teacher"
# The measures after all updates: column, digits, and a function of a result.
_COLUMNS: dict[str, tuple[int, Any]] = {
    "KL(teacher, student)": (3, lambda run: run["proxy"][-1]),
    "KL(oracle, student)": (3, lambda run: run["golden"][-1]),
    "KL(student, teacher)": (3, lambda run: run["from_student"]["teacher"]),
    "KL(student, oracle)": (3, lambda run: run["from_student"]["oracle"]),
    "slot errors": (3, lambda run: run["slot_errors"]),
    "distinct-2": (3, lambda run: run["distinct_2"]),
    "length": (1, lambda run: run["length"]),
}
_DISTANCES = list(_COLUMNS)[:4]


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (distillation.__doc__ or "").partition("\n\n")
    found = {arm: finished(folder, f"distillation/{arm}", SEEDS) for arm in ARMS}
    starts = finished(folder, "starts", SEEDS)
    lines = [
        "# Divergences of distillation\n",
        f"{question}\n",
        f"{details.rstrip()}\n",
        f"KL(oracle, teacher) is {spread([run['oracle_to_teacher'] for run in starts])}, which a perfect copy of the teacher would have.",
        f"The student starts at KL(oracle, student) {spread([run['oracle_to_student'] for run in starts])}. `_teacher`: on responses of",
        "the teacher; `_own`: on fresh samples of the student. Mean and standard deviation over seeds.\n",
    ]
    if any(found.values()):
        lines += [
            "## After all updates\n",
            markdown_table([_row(arm, runs) for arm, runs in found.items() if runs]),
        ]
        if differences := _differences(folder):
            lines += [
                f"\nDifferences from `{BASE}`, paired by seed.\n",
                markdown_table(differences),
            ]
        series = {
            arm: np.mean([[run["proxy"], run["golden"]] for run in runs], axis=0).T
            for arm, runs in found.items()
            if runs
        }
        plot_front(series, ("KL(teacher, student), nats a sequence", "KL(oracle, student)"), figure)
        lines.append(
            f"\n![KL of the oracle against KL of the teacher as training goes on, from right to left]({figure.name})\n"
        )
    return "\n".join([*lines, *unfinished(found, SEEDS), *_CONCLUSION])


_CONCLUSION: list[str] = []


def _row(arm: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    cells = {
        name: spread([measure(run) for run in runs], digits)
        for name, (digits, measure) in _COLUMNS.items()
    }
    return {"arm": f"`{arm}`", **cells, "updates": runs[0]["steps"], "seeds": len(runs)}


def _differences(folder: Path) -> list[dict[str, Any]]:
    """Returns every arm's distances minus those of the forward KL, over the seeds that both have finished."""
    results = {
        arm: [next(iter(finished(folder, f"distillation/{arm}", [seed])), None) for seed in SEEDS]
        for arm in ARMS
    }
    rows = []
    for arm, runs in results.items():
        both = [(run, base) for run, base in zip(runs, results[BASE], strict=True) if run and base]
        if arm != BASE and both:
            cells = {
                name: spread([_COLUMNS[name][1](run) - _COLUMNS[name][1](base) for run, base in both])
                for name in _DISTANCES
            }  # fmt: skip
            rows.append({"arm": f"`{arm}`", **cells, "seeds": len(both)})
    return rows


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "distillation", report)


if __name__ == "__main__":
    main()
