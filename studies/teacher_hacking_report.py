"""The page and the figure of teacher hacking: ``python -m studies.teacher_hacking_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.plots import plot_front
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import teacher_hacking
from studies.command_line import write_report
from studies.formatting import finished, spread, unfinished
from studies.teacher_hacking import ARMS, EPOCHS, SEEDS

FIGURE = Path("docs/results/teacher_hacking.png")


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (teacher_hacking.__doc__ or "").partition("\n\n")
    found = {arm: finished(folder, arm, SEEDS) for arm in ARMS}
    lines = ["# Teacher hacking\n", f"{question}\n", f"{details.rstrip()}\n", *_CONCLUSION]
    starts = [r for seed in SEEDS if (r := read_result(folder, f"starts/seed{seed}"))]
    lines.append(
        f"KL(oracle || teacher) is {spread([r['oracle_to_teacher'] for r in starts])}; the student starts at "
        f"{spread([r['oracle_to_student'] for r in starts])}.\n"
    )
    lines.append(markdown_table([_row(arm, runs) for arm, runs in found.items() if runs]))
    lines.append(
        f"\nMean and standard deviation over seeds, after {EPOCHS} epochs unless said otherwise. U: golden ends more than two standard "
        "errors (over held-out sequences) above its lowest measurement. Slope: of log proxy on log epoch over the last third of the "
        "epochs; a healthy run follows a power law, with a negative slope. A window is a measurement with a lower proxy and a higher "
        "golden than the one before.\n"
    )
    series = {
        arm: list(
            zip(
                *(np.mean([run[key] for run in runs], axis=0) for key in ("proxy", "golden")),
                strict=True,
            )
        )
        for arm, runs in found.items()
        if runs
    }
    if series:
        plot_front(series, ("proxy, nats a sequence", "golden, nats a sequence"), figure)
        lines.append(f"![Golden against proxy as training goes on]({figure.name})\n")
    return "\n".join([*lines, *unfinished(found, SEEDS)])


def _row(arm: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "arm": f"`{arm}`",
        "proxy": spread([run["proxy"][-1] for run in runs]),
        "golden": spread([run["golden"][-1] for run in runs]),
        "lowest golden": spread([min(run["golden"]) for run in runs]),
        "at epoch": spread([run["epochs"][run["lowest"]] for run in runs], 1),
        "rise": spread([run["rise"] for run in runs]),
        "U": f"{sum(run['u'] for run in runs)} of {len(runs)}",
        "windows": spread([len(run["windows"]) for run in runs], 1),
        "slope": spread([run["log_slope"] for run in runs], 2),
        "steps": spread([run["steps"] for run in runs][:1], 0),
    }


_CONCLUSION = [
    "**No teacher hacking in 40 epochs: golden falls with proxy in every arm; what differs is how far.** Fresh responses bring the student",
    "nearest to the oracle, those of the teacher (golden 8.0) as those of the student (8.2), nearer than the teacher itself (10.1).",
    "One fixed response for each act ends at 12.1, fixed ones with a tenth of fresh ones at 10.5, and a fifth of the acts at 13.2; the",
    "order is the same in every seed. With fixed responses both distances flatten (slope -.03 to -.07 against -.23 with fresh ones), which",
    "the detector shows without the oracle. In one seed golden rises significantly, with a fifth of the acts, where the proxy rises at",
    "the end too: over-fitting rather than hacking. The students are still far from the teacher (proxy 8.6 to 14.2), so this says nothing",
    "of what happens when they are near.\n",
]


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "teacher_hacking", report)


if __name__ == "__main__":
    main()
