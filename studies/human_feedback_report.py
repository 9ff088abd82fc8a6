"""The tables of the human-feedback study, from its run folder.

python -m studies.human_feedback_report --runs runs/human_feedback --output docs/results/human_feedback.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.formatting import spread
from studies.human_feedback import LEARNING_RATES, SEEDS, SOURCES, STRENGTHS, Source, selected

TITLES = {"dro_v": "DRO-V", "kto": "KTO"}


def source_table(folder: Path, source: Source) -> str:
    """Returns the table of Spearman correlation, AUC and within-prompt accuracy of every score on the test split."""
    rows: list[dict[str, Any]] = []
    baselines: dict[str, list[dict[str, Any]]] = {}
    for method in STRENGTHS:
        found = [read_result(folder, f"{source.name}/final/{method}/seed{seed}") for seed in SEEDS]
        results = [result for result in found if result is not None]
        if not results:
            continue
        strength, rate = selected(folder, source, method)
        chosen = f"{'tau' if method == 'dro_v' else 'beta'} {strength:g}, lr {rate:g}"
        for score in results[0]["ranking"]:
            rankings = [result["ranking"][score] for result in results]
            if score.startswith(("tau", "V ")) or score == "policy log-prob":
                rows.append(_row(f"{TITLES[method]}: {score}", rankings, chosen))
            elif score == "reference log-prob":
                baselines[score] = rankings
            else:
                baselines.setdefault(score, rankings[:1])
    rows += [_row(name, rankings, "-") for name, rankings in baselines.items()]
    return markdown_table(rows)


def _row(name: str, rankings: list[dict[str, Any]], chosen: str) -> dict[str, Any]:
    first = rankings[0]
    return {
        "score": name,
        "Spearman": spread([ranking["spearman"] for ranking in rankings]),
        "95 % (seed 0)": f"{first['spearman_low']:.2f} to {first['spearman_high']:.2f}",
        "AUC": spread([ranking["auc"] for ranking in rankings]),
        "correct within-prompt pairs": spread(
            [ranking["pairwise_accuracy"] for ranking in rankings]
        ),
        "pairs": first["pairs"],
        "seeds": len(rankings),
        "chosen": chosen,
    }


def caveats(folder: Path, source: Source) -> list[str]:
    """Returns the limitations of a source's table, as a list in Markdown."""
    edges, orders, pairs, longer = [], [], 0, 0.0
    for method, strengths in STRENGTHS.items():
        found = [read_result(folder, f"{source.name}/final/{method}/seed{seed}") for seed in SEEDS]
        results = [result for result in found if result is not None]
        if not results:
            continue
        strength, _ = selected(folder, source, method)
        name = "tau" if method == "dro_v" else "beta"
        if strength in (min(strengths), max(strengths)):
            edges.append(f"{TITLES[method]}'s {name} {strength:g}")
        score = next(score for score in results[0]["ranking"] if score.startswith("tau"))
        mean = fmean(result["ranking"][score]["pairwise_accuracy"] for result in results)
        orders.append((TITLES[method], mean))
        pairs = results[0]["ranking"][score]["pairs"]
        longer = results[0]["ranking"]["longer wins"]["pairwise_accuracy"]
    return caveat_lines(edges, orders, pairs, longer)


def caveat_lines(
    edges: Sequence[str], orders: Sequence[tuple[str, float]], pairs: int, longer: float
) -> list[str]:
    """Formats the list of `caveats`.

    Args:
      edges: settings that were chosen at an edge of their grid.
      orders: for every method, the share of the pairs within a prompt that it orders correctly.
      pairs: number of these pairs.
      longer: the share that the rule 'the longer response is better' orders correctly.
    """
    lines = []
    if edges:
        verb = "is at an edge" if len(edges) == 1 else "are at edges"
        lines.append(
            f"{' and '.join(edges)} {verb} of the grid of three values, and only {len(LEARNING_RATES)} learning rate was tried: other "
            "settings may be better."
        )
    if orders:
        error = 0.5 / pairs**0.5
        shares = ", ".join(f"{share:.2f} ({name})" for name, share in orders)
        best = max(share for _, share in orders)
        verdict = (
            "no evidence that a method orders the responses to one prompt better than their length does"
            if best < longer + 2 * error
            else "more than length explains"
        )
        lines.append(
            f"Within a prompt: {shares} against {longer:.2f} for 'the longer one wins', on {pairs} pairs (standard error about "
            f"{error:.2f}): {verdict}. Differences between prompts can cause a large part of a Spearman correlation over all responses."
        )
    lines.append(
        "KL from the reference was not measured, so the methods may be at different distances from it."
    )
    return [f"- {line}" for line in lines]


def report(folder: Path) -> str:
    """Returns the whole page."""
    lines = [
        "# Ranking held-out responses by human feedback",
        "",
        "    python -m studies.human_feedback --data DATA --output runs/human_feedback --workers 2",
        "    python -m studies.human_feedback_report --runs runs/human_feedback --output docs/results/human_feedback.md",
        "",
        "A T5 1.1 of one million parameters is fitted to all logged training responses (the reference). DRO-V and KTO",
        "(reference form) start from it; of five checkpoints, the one with the lowest loss on held-out groups is kept.",
        f"tau from {list(STRENGTHS['dro_v'])}, beta from {list(STRENGTHS['kto'])} and the learning rate from",
        f"{list(LEARNING_RATES)} are chosen by Spearman correlation on those held-out groups with seed 0. The tables show",
        "results on the dev files, mean ± sd over three seeds. AUC compares good with bad responses (thumbs; ratings above the median).",
        "Intervals resample prompts. TF-IDF is a ridge regression on the words of prompt and response.",
        "",
    ]
    for source in SOURCES:
        data = read_result(folder, f"{source.name}/data")
        if data is None:
            continue
        counts = ", ".join(f"{count:,} {split}" for split, count in data["responses"].items())
        lines += [
            f"## {source.name}: {counts} responses",
            "",
            f"{source.sft_steps} steps of SFT, {source.updates} updates of about 35 responses.",
            "",
            source_table(folder, source),
            "",
            *caveats(folder, source),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "human_feedback", report)


if __name__ == "__main__":
    main()
