"""The page and the figure of RPO without pairs: ``python -m studies.rpo_unpaired_report``."""

from __future__ import annotations

from pathlib import Path

from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import rpo_unpaired
from studies.command_line import write_report
from studies.formatting import finished, spread, unfinished
from studies.plotting import dot_plot
from studies.rpo_unpaired import ARMS, SEEDS, SOURCES

FIGURE = Path("docs/results/rpo_unpaired.png")


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (rpo_unpaired.__doc__ or "").partition("\n\n")
    lines = ["# RPO without pairs\n", f"{question}\n", f"{details.rstrip()}\n", *_CONCLUSION]
    lines.append(
        "Accuracy: how often the log-ratio to the start is higher for the better response of a held-out pair; standard error within a seed "
        "in brackets. Good over bad: the same over all held-out pairs of a good and a bad response, of any prompts. Mean and standard "
        "deviation over seeds.\n"
    )
    panels, every = {}, {}
    for name in SOURCES:
        found = {arm: finished(folder, f"{name}/{arm}", SEEDS) for arm in ARMS}
        every.update({f"{name}/{arm}": runs for arm, runs in found.items()})
        rows = [
            {
                "arm": f"`{arm}`",
                "accuracy": f"{spread([r['accuracy'] for r in runs])} ({runs[0]['accuracy_error']:.3f})",
                "good over bad": spread([r["good_over_bad"] for r in runs]),
                "log-ratio": spread([r["log_ratio"] for r in runs], 2),
                "its deviation": spread([r["log_ratio_std"] for r in runs], 2),
                "seeds": len(runs),
            }
            for arm, runs in found.items()
            if runs
        ]
        data = read_result(folder, f"{name}/responses/seed{SEEDS[0]}")
        if rows and data is not None:
            lines += [
                f"## {name}\n",
                f"{data['train']} responses ({data['good']:.2f} good), {data['pairs']} pairs for DPO, {data['test_pairs']} held-out pairs "
                f"(counts of seed {SEEDS[0]}).\n",
                markdown_table(rows),
                "",
            ]
            panels[name] = {
                arm: [r["accuracy"] for r in runs] for arm, runs in found.items() if runs
            }
    if panels:
        dot_plot(_same_arms(panels), "accuracy on held-out pairs", figure)
        lines.append(f"![Accuracy of every arm]({figure.name})\n")
    return "\n".join([*lines, *unfinished(every, SEEDS)])


def _same_arms(panels: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Returns the panels with the arms that all of them have, because they share an axis."""
    common = [arm for arm in ARMS if all(arm in panel for panel in panels.values())]
    return {name: {arm: panel[arm] for arm in common} for name, panel in panels.items()}


_CONCLUSION = [
    "**No: contrasting every good response with every bad one works, and weighting them by the similarity of their prompts does not",
    "help.** On `rnnlg` uniform weights order .710 of the held-out pairs, weighted ones .675 to .696: less in every seed, for every",
    "temperature and both encoders, and so is good over bad (by .02 to .04). The weighted arms also move further from the start",
    "(log-ratio -5.0 to -7.3 against -4.8), so they are no better at a smaller distance. On `taskmaster4` nothing differs (.585 to .607",
    "against .590; 78 pairs, an error of .056). States of T5 and a sentence encoder give the same within .005 (`rnnlg`) and .01. Without",
    "any pairs RPO is better than SFT on the good responses (.710 against .613 in every seed; `taskmaster4` .590 against .491, whose",
    "seeds differ by more), and near DPO with the pairs that it lacks (.723, .624).\n",
]


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "rpo_unpaired", report)


if __name__ == "__main__":
    main()
