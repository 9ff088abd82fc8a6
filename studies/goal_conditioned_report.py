"""The page and the figures of goal-conditioned reward models: ``python -m studies.goal_conditioned_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.formatting import spread
from studies.goal_conditioned import (
    HELPFUL,
    LEARNING_RATE,
    SEEDS,
    SOLUTIONS,
    UPDATES,
    Source,
    run_name,
)
from studies.goal_conditioned_measures import DROPPED, IGNORED_TOKENS, SHARES
from studies.plotting import curves_plot

PREFIXES = Path("docs/results/goal_conditioned_prefixes.png")
VOTES = Path("docs/results/goal_conditioned_votes.png")
NAMES = {"q": "Q", "reward": "reward head"}
Runs = dict[str, list[dict[str, Any]]]


def report(folder: Path) -> str:
    """Returns the page and draws the figures."""
    found = {
        source.name: {size: complete(source, folder, size) for size in source.sizes}
        for source in (SOLUTIONS, HELPFUL)
    }
    solutions, helpful = found[SOLUTIONS.name], found[HELPFUL.name]
    lines = [
        "# Goal-conditioned reward models\n",
        "    python -m studies.goal_conditioned --data <folder with gsm8k.*, gsm8k_solutions.* and hh_helpful_base.*> --workers 2",
        "    python -m studies.goal_conditioned_report\n",
        "Question: does a contrast of the states of prefixes ([2407.13887](https://arxiv.org/abs/2407.13887)) make a better reward model?",
        "Is Q, the cosine of a prefix with the mean last state of good responses, better than the reward head read at the same prefix?\n",
        f"T5 of 0.3 million parameters, fine-tuned on good responses before; {UPDATES} updates of about 15 pairs",
        f"each, learning rate {LEARNING_RATE:g}, contrast weight 0.5, K = 16; no hyperparameter was searched.",
        "Mean and standard deviation over seeds: a seed draws pairs and their order, the same for all arms. Differences are paired by",
        "seed, with their standard error.\n",
        "## Right and wrong solutions (`gsm8k_solutions`)\n",
        *_aurocs(solutions),
        "",
        *_differences(solutions),
        "",
        f"![AUROC by share of the solution read]({PREFIXES.name})\n",
        "## Votes\n",
        *_votes(solutions),
        "",
        f"![Accuracy of filtered votes by share of tokens read]({VOTES.name})\n",
        "## Helpfulness (`hh_helpful_base`)\n",
        *_helpful(helpful),
        "",
        *_CONCLUSION,
    ]
    _draw_prefixes(solutions)
    _draw_votes(solutions)
    return "\n".join(lines)


_CONCLUSION: list[str] = [
    "## Conclusion\n",
    "- **At this scale the method gets no fair trial, because no reward model learns to judge solutions.** Held-out AUROC is .50 to",
    "  .54 in every arm, and .50 to .52 of the held-out pairs are ordered rightly, where the rule that the longer one is right has",
    "  .60. 250 training pairs are memorised (.93 right at the end of the first seed), 1,900 are not (.66 after 200 updates).",
    "- The contrastive loss changes nothing at the end of a solution (differences of at most .006, errors .004 to .009), nor at",
    "  prefixes. Q orders what the reward head orders (correlation .88 to .99). At prefixes it is up to .011 worse; at the end, with",
    "  1,900 pairs, the released form's Q has .538 ± .016 where the reward heads have .51.",
    "- **Majority wins the vote** (.458). Weights by reward (.36 to .39) and the highest reward (.31 to .33) are worse. Filters by Q",
    "  or by the reward save 11 to 15 % of the tokens and lose .02 to .05 of accuracy, no less than asking for fewer solutions does;",
    "  the published threshold of 0 drops nearly nothing.",
    "- Helpfulness: .55 to .58 with and without the contrast; the longer response has .64.",
]


def complete(source: Source, folder: Path, size: int) -> Runs:
    """Returns the results by arm of the seeds that all arms have finished, in the same order for every arm."""
    by_seed = [
        [read_result(folder, run_name(source, size, arm, seed)) for arm in source.arms]
        for seed in SEEDS
    ]
    finished = [results for results in by_seed if all(results)]
    return {
        arm: [results[column] or {} for results in finished]
        for column, arm in enumerate(source.arms)
    }


def paired(differences: list[float], digits: int = 3) -> str:
    """Formats the mean of paired differences and its standard error."""
    array = np.asarray(differences)
    if len(array) < 2:
        return "-" if not len(array) else f"{array[0]:+.{digits}f}"
    return f"{array.mean():+.{digits}f} ± {array.std(ddof=1) / np.sqrt(len(array)):.{digits}f}"


def _aurocs(solutions: dict[int, Runs]) -> list[str]:
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    lines = [
        "Area under the ROC curve, right against wrong, by the share of the solution's tokens that is read, on all held-out solutions; and",
        "how often the reward at the end prefers the right solution of a held-out pair.\n",
        f"| pairs | arm | scorer | {shares} | pair accuracy | correlation of Q and reward | seeds |",
        "|---" * (len(SHARES) + 6) + "|",
    ]
    for size, arms in solutions.items():
        for arm, runs in arms.items():
            for name, label in NAMES.items():
                cells = [
                    spread([run["solutions"]["auroc"][name][column] for run in runs])
                    for column in range(len(SHARES))
                ]
                accuracy = spread([run["pairs"]["accuracy"] for run in runs])
                agree = spread([run["solutions"]["q_and_reward"] for run in runs], 2)
                last = [accuracy, agree] if name == "reward" else ["", ""]
                lines.append(
                    f"| {size} | {arm} | {label} | {' | '.join([*cells, *last])} | {len(runs)} |"
                )
    some = _first(solutions)
    if some:
        lines += [
            "",
            f"Shorter solutions first has an area of {some['solutions']['auroc_shorter']:.3f}; of pairs, the longer one is right in "
            f"{some['pairs']['longer']:.3f}.",
        ]
    return lines


def _differences(solutions: dict[int, Runs]) -> list[str]:
    """Returns differences to Bradley-Terry alone, and of Q to the reward head of the same run, as means over the earlier prefixes."""
    lines = [
        "Differences of AUROC; prefixes are the mean over 25, 50 and 75 %.\n",
        "| pairs | arm | end, reward head minus alone | prefixes, reward head minus alone | prefixes, Q minus alone's reward head | "
        "prefixes, Q minus reward head of the same run |",
        "|---|---|---|---|---|---|",
    ]
    for size, arms in solutions.items():
        alone = [run["solutions"]["auroc"] for run in arms["alone"]]
        for arm, runs in arms.items():
            own = [run["solutions"]["auroc"] for run in runs]
            cells = [
                [a["reward"][-1] - b["reward"][-1] for a, b in zip(own, alone, strict=True)],
                [
                    float(np.mean(a["reward"][:-1]) - np.mean(b["reward"][:-1]))
                    for a, b in zip(own, alone, strict=True)
                ],
                [
                    float(np.mean(a["q"][:-1]) - np.mean(b["reward"][:-1]))
                    for a, b in zip(own, alone, strict=True)
                ],
                [float(np.mean(a["q"][:-1]) - np.mean(a["reward"][:-1])) for a in own],
            ]
            texts = [paired(cell) for cell in cells]
            if arm == "alone":
                texts[:2] = ["", ""]
            lines.append(f"| {size} | {arm} | {' | '.join(texts)} |")
    return lines


def _votes(solutions: dict[int, Runs]) -> list[str]:
    lines = [
        "Four solutions to each of 119 held-out questions vote by their last number; a tie is right by its share of right winners. A",
        f"filter drops a solution at the first token, of those behind the first {IGNORED_TOKENS}, whose score is below a threshold; the",
        "tokens after it are not read. `Q at 0` has the public code's threshold. For the other columns the threshold is where the",
        "filter drops 30 % of the solutions, for Q and for the reward head alike: accuracy (share of tokens read). No threshold is",
        "chosen by its accuracy. Where all four solutions are dropped, all are read and vote.\n",
        "| pairs | arm | reward-weighted | highest reward | Q at 0 | Q, 30 % dropped | reward, 30 % dropped | Q minus reward | seeds |",
        "|---" * 9 + "|",
    ]
    column = DROPPED.index(0.3)
    for size, arms in solutions.items():
        for arm, runs in arms.items():
            votes = [run["solutions"]["votes"] for run in runs]
            if not votes:
                continue
            at_0 = [each["q_at_0"] for each in votes]
            curves = {name: [each["curves"][name][column] for each in votes] for name in NAMES}
            cells = [
                spread([each["reward_weighted"] for each in votes]),
                spread([each["best_reward"] for each in votes]),
                _accuracy_and_tokens(at_0),
                *(_accuracy_and_tokens(points) for points in curves.values()),
                paired([a[1] - b[1] for a, b in zip(curves["q"], curves["reward"], strict=True)]),
            ]
            lines.append(f"| {size} | {arm} | {' | '.join(cells)} | {len(runs)} |")
    some = _first(solutions)
    if some:
        fewer = some["solutions"]["votes"]["fewer"]
        lines += [
            "",
            f"Majority of all four: {some['solutions']['votes']['majority']:.3f}. "
            "Of one to three solutions drawn at random (share of tokens): "
            + ", ".join(f"{point[1]:.3f} ({point[0]:.2f})" for point in fewer[:-1])
            + ".",
        ]
    return lines


def _accuracy_and_tokens(points: list[list[float]]) -> str:
    return (
        f"{spread([point[1] for point in points])} ({np.mean([point[0] for point in points]):.2f})"
    )


def _helpful(helpful: dict[int, Runs]) -> list[str]:
    lines = [
        "Accuracy on 237 held-out pairs.\n",
        "| pairs | alone | matched | matched minus alone | correlation with length, alone | matched | seeds |",
        "|---" * 7 + "|",
    ]
    for size, arms in helpful.items():
        accuracy = {arm: [run["pairs"]["accuracy"] for run in runs] for arm, runs in arms.items()}
        lengths = [
            spread([run["pairs"]["length_correlation"] for run in runs], 2)
            for runs in arms.values()
        ]
        difference = [a - b for a, b in zip(accuracy["matched"], accuracy["alone"], strict=True)]
        lines.append(
            f"| {size} | {spread(accuracy['alone'])} | {spread(accuracy['matched'])} | {paired(difference)} | {' | '.join(lengths)} | "
            f"{len(difference)} |"
        )
    some = _first(helpful)
    if some:
        lines += ["", f"Baseline, the longer response: {some['pairs']['longer']:.3f}."]
    return lines


def _first(found: dict[int, Runs]) -> dict[str, Any] | None:
    """Returns any result, for what is equal in all of them."""
    return next((runs[0] for arms in found.values() for runs in arms.values() if runs), None)


def _draw_prefixes(solutions: dict[int, Runs]) -> None:
    panels = {
        f"{size} pairs": {
            f"{arm}, {label}": [
                (share, [run["solutions"]["auroc"][scorer][column] for run in runs])
                for column, share in enumerate(SHARES)
            ]
            for arm, runs in arms.items()
            for scorer, label in NAMES.items()
            if runs
        }
        for size, arms in solutions.items()
    }
    curves_plot(panels, ("share of the solution read", "AUROC"), PREFIXES)


def _draw_votes(solutions: dict[int, Runs]) -> None:
    panels = {}
    for size, arms in solutions.items():
        panel: dict[str, list[tuple[float, list[float]]]] = {}
        found = {
            arm: [run["solutions"]["votes"] for run in arms[arm]] for arm in ("alone", "matched")
        }
        for arm, votes in found.items():
            for name, label in NAMES.items():
                panel[f"{arm}, {label}"] = [
                    (
                        float(np.mean([each["curves"][name][column][0] for each in votes])),
                        [each["curves"][name][column][1] for each in votes],
                    )
                    for column in range(len(DROPPED))
                    if votes
                ]
        # Last, because two curves share a colour.
        if found["alone"]:
            fewer = found["alone"][0]["fewer"]
            panel["fewer solutions"] = [(share, [accuracy]) for share, accuracy in fewer]
        panels[f"{size} pairs"] = panel
    curves_plot(panels, ("share of the tokens read", "accuracy of the vote"), VOTES)


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "goal_conditioned", report)


if __name__ == "__main__":
    main()
