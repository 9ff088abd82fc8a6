"""The page of steering by a goal: ``python -m studies.goal_steering_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from studies.command_line import write_report
from studies.formatting import finished, spread
from studies.goal_conditioned_measures import SHARES
from studies.goal_steering import CANDIDATES, MODES, REWARDS, SCORES, SEEDS, WEIGHTS, Size
from studies.plotting import line_plot

PLOT = Path("docs/results/goal_steering.png")

MEASURES = {
    "slot_errors": ("slot errors", 3),
    "length": ("length, tokens", 1),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "log_prob": ("log-probability under the policy", 2),
}


def report(folder: Path) -> str:
    """Returns the page."""
    runs = finished(folder, "steered", SEEDS)
    size = Size()
    lines = [
        "# Steering by a goal\n",
        "    python -m studies.goal_steering --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2",
        "    python -m studies.goal_steering_report\n",
        "Question: do Q-values of a goal state ([2407.13887](https://arxiv.org/abs/2407.13887)) steer decoding better than the reward head",
        "of a reward model? [decoding.md](../decoding.md) has the hooks.\n",
        f"`rnnlg`, T5 of a million parameters. At each step the score of the prefix is added to the log-probabilities of the {CANDIDATES}",
        f"most probable tokens. Weights: {', '.join(f'{weight:g}' for weight in WEIGHTS)} nats per standard deviation of the score; the",
        f"one with the fewest slot errors on {size.judged['validation']} validation acts is used on {size.judged['test']} test acts. Slot",
        f"errors: missing and invented slots by all slots. Mean and standard deviation over {len(runs)} of {len(SEEDS)} seeds.",
    ]
    lines += ["", *_CONCLUSION, f"\n![Slot errors by weight on validation acts]({PLOT.name})"]
    line_plot(
        {mode: _validation_errors(runs, mode) for mode in MODES},
        ("weight, nats per standard deviation of the score", "slot errors, validation (fewer is better)"),
        PLOT,
    )  # fmt: skip
    lines += _prefixes(folder)
    for mode in MODES:
        names = " | ".join(name for name, _ in MEASURES.values())
        lines += [
            f"\n## {mode.capitalize()}\n",
            f"| score | weights | {names} | slot errors minus plain |",
            "|---" * (len(MEASURES) + 3) + "|",
        ]
        for score in ("plain", *SCORES):
            found = [run[mode][score] for run in runs]
            cells = [
                spread([each[key] for each in found], digits)
                for key, (_, digits) in MEASURES.items()
            ]
            weights = ", ".join(f"{each['weight']:g}" for each in found if "weight" in each)
            difference = spread(_minus(runs, mode, score, "plain")) if score != "plain" else ""
            lines.append(f"| {score} | {weights} | {' | '.join(cells)} | {difference} |")
        q, reward = list(SCORES)[2], list(SCORES)[1]
        lines.append(
            f"\nSlot errors of Q minus those of the reward head of the same model: {spread(_minus(runs, mode, q, reward))}."
        )
        lines += _by_weight(runs, mode)
    return "\n".join([*lines, ""])


_CONCLUSION: list[str] = [
    "**No: neither score helps on this task.** With the weight that validation chose, greedy responses have .076 slot errors without",
    "steering and .077 with Q (difference .001 ± .007); samples have .121 and .116 (-.004 ± .015). Q and the reward head of the same",
    "model do the same (differences .001 ± .001 and .005 ± .008). The table of prefixes gives the reason: the reward models judge whole",
    "samples (AUROC .74 to .75), but hardly half of one (.56 to .60), and steering acts on prefixes. The contrastive loss does not make",
    "prefixes easier to judge than Bradley-Terry alone does. From a weight of 2 on, every score makes more errors than plain decoding.",
]


def _prefixes(folder: Path) -> list[str]:
    """Returns how well the scores tell good samples from bad ones before the end."""
    lines = [
        "\n## Prefixes\n",
        "Area under the ROC curve by the share of a sample that is read: samples of the policy without wrong slots against the others, on",
        "validation acts.\n",
        f"| reward model | scorer | {' | '.join(f'{share:.0%}' for share in SHARES)} | seeds |",
        "|---" * (len(SHARES) + 3) + "|",
    ]
    for reward in REWARDS:
        found = finished(folder, f"reward_{reward}", SEEDS)
        for scorer, label in (("q", "Q"), ("reward", "reward head")):
            cells = [
                spread([run["auroc"][scorer][column] for run in found])
                for column in range(len(SHARES))
            ]
            lines.append(f"| {reward} | {label} | {' | '.join(cells)} | {len(found)} |")
    return lines


def _validation_errors(
    runs: list[dict[str, Any]], mode: str
) -> dict[str, dict[float, list[float]]]:
    """Returns slot errors over seeds by score and weight; those of plain decoding at every weight."""
    found = {
        score: {
            weight: [run[mode][score]["validation"][f"{weight:g}"]["slot_errors"] for run in runs]
            for weight in WEIGHTS
        }
        for score in SCORES
    }
    plain = [run[mode]["plain"]["validation"]["0"]["slot_errors"] for run in runs]
    return {"plain": dict.fromkeys(WEIGHTS, plain), **found}


def _minus(runs: list[dict[str, Any]], mode: str, one: str, other: str) -> list[float]:
    return [run[mode][one]["slot_errors"] - run[mode][other]["slot_errors"] for run in runs]


def _by_weight(runs: list[dict[str, Any]], mode: str) -> list[str]:
    """Returns slot errors and diversity on validation acts by weight, the trade-off that steering makes."""
    lines = [
        "\nOn validation acts, by weight: slot errors (distinct-2).\n",
        f"| score | 0 (plain) | {' | '.join(f'{weight:g}' for weight in WEIGHTS)} |",
        "|---" * (len(WEIGHTS) + 2) + "|",
    ]
    plain = _errors_and_distinct(runs, mode, "plain", "0")
    for score in SCORES:
        cells = [_errors_and_distinct(runs, mode, score, f"{weight:g}") for weight in WEIGHTS]
        lines.append(f"| {score} | {plain} | {' | '.join(cells)} |")
    return lines


def _errors_and_distinct(runs: list[dict[str, Any]], mode: str, score: str, weight: str) -> str:
    found = [run[mode][score]["validation"][weight] for run in runs]
    if not found:
        return "-"
    errors, distinct = (
        float(np.mean([each[key] for each in found])) for key in ("slot_errors", "distinct_2")
    )
    return f"{errors:.3f} ({distinct:.3f})"


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "goal_steering", report)


if __name__ == "__main__":
    main()
