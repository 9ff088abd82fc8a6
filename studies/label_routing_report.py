"""The page and the figure of routing between human and model labels: ``python -m studies.label_routing_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.formatting import spread
from studies.label_routing import FOLDS, KINDS, MIXES, REPETITIONS, SETTINGS
from studies.plotting import dot_plot

FIGURE = Path("docs/results/label_routing.png")
TITLES = {
    "pandalm_by_pair": "People and GPT-3.5, split by pair",
    "pandalm": "People and GPT-3.5",
    "complementary": "Planted, complementary",
    "random_errors": "Planted, random",
}
BASELINE = "random half"


def report(folder: Path) -> str:
    """Returns the page and draws the figure."""
    found = {setting: _by_repetition(folder, setting) for setting in SETTINGS}
    found = {setting: runs for setting, runs in found.items() if runs}
    first = next(iter(found.values()))[0][0]
    sizes = first["pairs"]
    lines = [
        "# Routing between human and model labels (HyPER)\n",
        "    python -m studies.label_routing --data <folder with pandalm_two_sources.annotated.*.jsonl> --workers 2",
        "    python -m studies.label_routing_report\n",
        "Question: if half of the pairs get a human label and the others a model's, does it matter which half? A model of performance is",
        f"fitted to {MIXES + 2} measured mixes of labels and chooses the half (`routed` of `jaxalign select`).\n",
        "Three pairs of label sources, on the same texts (`pandalm_two_sources`): people (majority of three) and GPT-3.5; two planted",
        "annotators, of which one prefers the shorter response where the prompt is long and the other where it is short, and which agree",
        "with people elsewhere; two planted annotators that are wrong at random in 25 % of pairs. Accuracy is always measured against",
        f"people. Reward model: a logistic head on TF-IDF features and the log of the number of words. {FOLDS} folds by prompt (in the",
        "first column by pair and without the length, so that responses of the test occur in the pool): about",
        f"{sizes['pool']} pairs in the pool, {sizes['dev']} that measure mixes, and {sizes['test']} in the test; mean and standard",
        f"deviation over {REPETITIONS} repetitions.",
        "Repetitions share their data, so the deviations are smaller than those of new data would be.\n",
        f"| test accuracy | {' | '.join(TITLES[s] for s in found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for arm in first["arms"]:
        cells = [spread(_means(runs, lambda r, arm=arm: r["arms"][arm])) for runs in found.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The same minus `{BASELINE}`, paired by split:\n",
        f"| difference | {' | '.join(TITLES[s] for s in found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for arm in first["arms"]:
        if arm != BASELINE:
            cells = [
                spread(_means(runs, lambda r, arm=arm: r["arms"][arm] - r["arms"][BASELINE]))
                for runs in found.values()
            ]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        "",
        "Model of performance, five-fold cross-validation over the measured mixes; share of human labels where it is free:\n",
        f"| | {' | '.join(TITLES[s] for s in found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    rows: list[tuple[str, Any]] = []
    for kind in KINDS:
        rows += [
            (f"{kind}: rank correlation", lambda r, k=kind: r["regressions"][k]["spearman"]),
            (f"{kind}: RMSE", lambda r, k=kind: r["regressions"][k]["rmse"]),
            (f"{kind}: share, simulated", lambda r, k=kind: r["shares"][f"{k} simulated free"]),
            (f"{kind}: share, gain", lambda r, k=kind: r["shares"][f"{k} gain free"]),
        ]
    rows += [
        ("deviation of measured accuracy over mixes", lambda r: r["performance_std"]),
        ("agreement of the two sources", lambda r: r["agreement"]),
        ("accuracy of the expensive labels", lambda r: r["human_accuracy"]),
        ("accuracy of the cheap labels", lambda r: r["model_accuracy"]),
    ]
    for name, read in rows:
        lines.append(
            f"| {name} | {' | '.join(spread(_means(runs, read)) for runs in found.values())} |"
        )
    dot_plot(
        {
            TITLES[setting]: {
                arm: _means(runs, lambda r, arm=arm: r["arms"][arm]) for arm in first["arms"]
            }
            for setting, runs in found.items()
        },
        "test accuracy",
        FIGURE,
    )
    lines += ["", f"![Test accuracy of every arm]({FIGURE.name})", "", *_CONCLUSION]
    return "\n".join(lines)


_CONCLUSION = [
    "Conclusion: where the errors of the two sources are systematic and complementary, routing is worth a great deal: half of the labels",
    "from each source, chosen by a linear or quadratic regression, are better than either source and than random halves, and both ways",
    "of routing and both regressions find such a half. Where errors are random, no mix differs from another beyond the spread.",
    "",
    "Between people and GPT-3.5 no gain is seen. Split by pair, a random half is .70, all human labels .72, GPT-3.5 alone .68, and the",
    "routed halves .70. The regression predicts measured mixes well (rank correlation .65 to .7), but all of them are measured on the same",
    "pairs, and what suits these does not carry over to others. The last arm shows the trap: if the mixes are measured on the pairs of the",
    "test, the routed half is .71 and the difference from a random half is +.011. Measured on other pairs, that difference is gone.",
    "Routing also pays for the human labels that measure the mixes: to train on them with a random half gains more (+.014, `random half",
    "and dev`) than routing does. Split by prompt, even all human labels are no better than a random half.",
    "",
]


def _by_repetition(folder: Path, setting: str) -> list[list[dict[str, Any]]]:
    """Returns the results of the folds of every complete repetition."""
    runs = [
        [read_result(folder, f"{setting}/repetition{r}/fold{f}") for f in range(FOLDS)]
        for r in range(REPETITIONS)
    ]
    return [[fold for fold in folds if fold] for folds in runs if all(folds)]


def _means(runs: list[list[dict[str, Any]]], read: Any) -> list[float]:
    return [float(np.mean([read(fold) for fold in folds])) for folds in runs]


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "label_routing", report)


if __name__ == "__main__":
    main()
