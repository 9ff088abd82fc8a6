"""The pages of the studies of rounds, from their run folders: ``python -m studies.rounds_report spa --runs runs/rounds``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.plots import plot_front
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import rounds_iterative, rounds_selm, rounds_spa
from studies.equal_distance import rewards_at
from studies.formatting import spread
from studies.rounds_arms import SEEDS, Arm

STUDIES: dict[str, tuple[str, Mapping[str, Arm], str]] = {
    "spa": (
        "Rounds of self-labelled preferences (SPA)",
        rounds_spa.ARMS,
        rounds_spa.__doc__ or "",
    ),
    "selm": ("Rounds of optimistic DPO (SELM)", rounds_selm.ARMS, rounds_selm.__doc__ or ""),
    "iterative": (
        "Three rounds or one, for DPO and DRO",
        rounds_iterative.ARMS,
        rounds_iterative.__doc__ or "",
    ),
}
# The comparisons of a study: an arm, and what it is compared with.
_COMPARISONS: dict[str, list[tuple[str, str]]] = {
    "spa": [(arm, "spa") for arm in rounds_spa.ARMS if arm != "spa"],
    "selm": [
        (arm, f"{arm.partition('_')[0]}_alpha0")
        for arm in rounds_selm.ARMS
        if not arm.endswith("_alpha0")
    ],
    "iterative": [("dpo_3_rounds", "dpo_1_round"), ("dro_3_rounds", "dro_1_round")],
}
_CONCLUSIONS: dict[str, list[str]] = {
    "spa": [
        "Conclusion: the policy's own labels point the wrong way here. They agree with the exact judge in .36 to .43 of the pairs",
        "that do not tie, and three rounds take the reward from -.143 to -.37, below random labels (-.23). The policy of round 0,",
        "from the labels of 5 % of the acts, writes longer sentences than the start (32 tokens against 26). Its implicit reward",
        "is a sum over tokens and prefers longer samples, and every round lengthens them, up to 60 tokens. Noise-aware",
        "refinement, extrapolation and the choice of the reference change the last reward by less than its deviation over seeds;",
        "at equal distance the arm without extrapolation is .047 ± .039 worse.",
        "With exact labels the same rounds improve, to -.126. SPA needs a first policy that judges better than chance on the",
        "samples of the next round; the column `label accuracy` shows whether it does.",
    ],
    "selm": [
        "Conclusion: lowering the probability of the own answer gains nothing. At equal distance from the start, alpha changes",
        "the reward by -.010 to .016, with deviations of .004 to .046 over seeds; after the last round the larger alpha are",
        "further away and worse. From the normal start only the first round improves (-.174 to -.15): the next ones rank fresh",
        "answers against logged ones of the start that the policy has left, up to 29 nats and 39 tokens away. From the bad start",
        "the first round repairs nearly everything (-.53 to -.17 and -.20), for every alpha. There alpha .1 is best by .014,",
        "which is less than the deviation.",
    ],
    "iterative": [
        "Conclusion: fresh samples in every round gain nothing here. At equal distance from the start, three rounds are .013",
        "better than one for DPO and .015 worse for DRO, with deviations of .02 over seeds and a standard error of .016 of each",
        "measured reward (200 samples). All four arms are better than the start (-.174). DPO comes further, to -.11 and -.12, at",
        "4 nats and with sentences a quarter longer; DRO at tau 1 stays within .35 nats. In one round 600 acts give 520 pairs of",
        "different reward, in three 478: a better policy makes fewer errors to learn from. The optimizer and its schedule begin",
        "anew in every round.",
    ],
}
# Columns of the table, their digits, and their name in the result of a round.
_COLUMNS = (
    ("reward", 3, "reward"),
    ("KL to start, nats", 2, "kl_to_start"),
    ("length", 1, "length"),
    ("label accuracy", 3, "label_accuracy"),
    ("pairs that tie", 2, "label_ties"),
    ("records", 0, "examples"),
    ("log pi of the start's responses", 2, rounds_selm.START_LOG_PROBS),
)


def report(name: str, folder: Path, plot: Path) -> str:
    """Returns the page of a study, and draws its plot; arms that have not run with all seeds are named.

    Args:
      name: the study.
      folder: its run folder.
      plot: the PNG to write.
    """
    title, arms, text = STUDIES[name]
    question, _, details = text.partition("\n\n")
    found = {arm: _results(folder, arm) for arm in arms}
    known = {key for runs in found.values() for run in runs for entry in run for key in entry}
    rows, series = [], {}
    for arm, results in found.items():
        rounds = _by_round(results)
        rows += [
            {"arm": f"`{arm}`", "round": number, **_cells(entries, known), "seeds": len(entries)}
            for number, entries in rounds.items()
        ]
        points = [
            [_mean(entries, key) for key in ("kl_to_start", "reward")]
            for entries in rounds.values()
        ]
        if points:
            series[arm] = points
    parts = [f"# {title}\n", f"{question.strip()}\n", details.rstrip() + "\n"]
    if series:
        plot_front(series, ("log-ratio to the start, nats", "reward"), plot)
        parts += [
            markdown_table(rows),
            "\nMean and standard deviation over seeds; 200 test acts, one sample at temperature 1 each; the reward is minus the share of "
            "wrong slots.\n",
            *_comparisons(found, _COMPARISONS[name]),
            f"![Reward against the distance from the start, round after round]({plot.name})\n",
            *_CONCLUSIONS[name],
        ]
    missing = [f"`{arm}` ({len(each)})" for arm, each in found.items() if len(each) < len(SEEDS)]
    if missing:
        parts.append(
            f"**Not finished with all {len(SEEDS)} seeds** (finished seeds in brackets): {', '.join(missing)}.\n"
        )
    return "\n".join(parts)


def _comparisons(
    found: Mapping[str, list[list[dict[str, Any]]]], pairs: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns the table of differences between arms, paired by seed, after the last round and at equal distance from the start."""
    rows = []
    for arm, other in pairs:
        both = list(zip(found[arm], found[other], strict=False))
        if not both:
            continue
        at_equal_distance = []
        for own, theirs in both:
            distance = min(_path(own)[-1][0], _path(theirs)[-1][0])
            at_equal_distance.append(_reward_at(own, distance) - _reward_at(theirs, distance))
        last = [own[-1]["reward"] - theirs[-1]["reward"] for own, theirs in both]
        rows.append(
            {
                "arm": f"`{arm}`",
                "minus": f"`{other}`",
                "reward, last round": spread(last, 3),
                "reward, equal distance": spread(at_equal_distance, 3),
                "seeds": len(both),
            }
        )
    if not rows:
        return []
    return [
        "Differences, paired by seed (mean and standard deviation). Equal distance: at the smaller log-ratio of the two last rounds, the "
        "highest reward on the straight lines between an arm's rounds.\n",
        markdown_table(rows) + "\n",
    ]


def _path(entries: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Returns the distance from the start and the reward, round by round."""
    return [(entry["kl_to_start"], entry["reward"]) for entry in entries]


def _reward_at(entries: Sequence[Mapping[str, Any]], distance: float) -> float:
    """Returns the highest reward at a distance on the straight lines between the rounds."""
    found = rewards_at(_path(entries), distance)
    return max(found, default=entries[0]["reward"])


def _results(folder: Path, arm: str) -> list[list[dict[str, Any]]]:
    found = []
    for seed in SEEDS:
        result = read_result(folder, f"{arm}/seed{seed}")
        if result is None:
            continue
        name = rounds_selm.START_LOG_PROBS
        scored = read_result(folder, f"{name}/{arm}/seed{seed}") or {"log_probs": {}}
        found.append(
            [
                {**entry, name: scored["log_probs"][entry["round"]]}
                if entry["round"] in scored["log_probs"]
                else entry
                for entry in map(_named, result["rounds"])
            ]
        )
    return found


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry with the name of its round as text."""
    return {**entry, "round": str(entry["round"])}


def _by_round(results: Sequence[Sequence[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the entries of every round over seeds."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for entry in result:
            rounds.setdefault(str(entry["round"]), []).append(entry)
    return rounds


def _cells(entries: Sequence[dict[str, Any]], known: set[str]) -> dict[str, str]:
    """Returns the columns of which some round of the study has a measure."""
    return {
        title: spread([entry[key] for entry in entries if key in entry], digits)
        for title, digits, key in _COLUMNS
        if key in known
    }


def _mean(entries: Sequence[dict[str, Any]], key: str) -> float:
    return sum(entry[key] for entry in entries) / len(entries)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or Path("docs/results") / f"rounds_{arguments.study}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    text = report(arguments.study, arguments.runs, output.with_suffix(".png"))
    output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
