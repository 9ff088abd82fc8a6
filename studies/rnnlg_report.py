"""The tables of the RNNLG study, from its run folder.

python -m studies.rnnlg_report --runs runs/rnnlg --output docs/results/rnnlg.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.statistics import Estimate, bootstrap_mean, win_points
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.formatting import spread
from studies.rnnlg import (
    ABLATIONS,
    FAMILIES,
    KTO_BETAS,
    LEARNING_RATES,
    METHODS,
    SAMPLES_PER_ACT,
    SEEDS,
    SFT_STEPS,
    UPDATES,
)

TITLES = {
    "sft": "SFT (start and reference)",
    "dro_v": "DRO-V",
    "dro_p": "DRO-P",
    "kto_paper": "KTO, DRO paper's form",
    "kto_reference": "KTO, reference form",
    "dpo": "DPO",
    "filtered_sft": "filtered SFT",
    "best_of_4_sft": "best-of-4 SFT",
    "dro_v_tau0.1": "DRO-V, tau 0.1",
    "dro_v_tau5": "DRO-V, tau 5",
    "dro_v_double_single": "DRO-V, one value per batch",
    "dro_v_single_multi": "DRO-V, shared network",
    "dro_v_single_single": "DRO-V, shared network, one value per batch",
}
# (better, worse, claim of the paper): arXiv 2405.19107, tables 1 and 2 and figure 5.
ORDERINGS = (
    ("dro_v", "sft", "DRO-V beats SFT (78.9 % T5-L)"),
    ("kto_paper", "sft", "KTO beats SFT (67.5 % T5-L)"),
    ("dro_v", "kto_paper", "DRO-V beats KTO (63.4 % T5-L)"),
    ("dro_p", "sft", "DRO-P can beat SFT"),
    ("dro_v", "dro_p", "DRO-V beats DRO-P"),
    ("dro_v", "dro_v_tau0.1", "tau 1 beats tau 0.1"),
    ("dro_v", "dro_v_tau5", "tau 1 beats tau 5"),
    ("dro_v", "dro_v_single_multi", "separate networks beat a shared one (74.7 %)"),
    ("dro_v_double_single", "dro_v_single_single", "the same with one value per batch (62.9 %)"),
    ("dro_v", "dro_v_double_single", "a value per prompt beats one per batch (54.9 %)"),
    (
        "dro_v_single_single",
        "dro_v_single_multi",
        "with a shared network, one per batch beats a value per prompt (54.8 %)",
    ),
)


def load(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Reads the finished results by family and seed."""
    names = {"sft": "sft", **{family: f"final/{family}" for family in (*FAMILIES, *ABLATIONS)}}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for family, name in names.items():
        for seed in SEEDS:
            result = read_result(folder, f"{name}/seed{seed}")
            if result is not None:
                found.setdefault(family, {})[seed] = result
    return found


def win_rates(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> list[float]:
    """Returns win rates of the first over the second for every common seed, by reward on the same acts; a tie counts half."""
    return [
        float(
            np.mean(win_points(np.array(first[seed]["rewards"]), np.array(second[seed]["rewards"])))
        )
        for seed in sorted(first.keys() & second.keys())
    ]


def _interval(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> Estimate:
    """Returns the bootstrap interval over acts of the win rate; seeds are averaged act by act."""
    points = [
        win_points(np.array(first[seed]["rewards"]), np.array(second[seed]["rewards"]))
        for seed in sorted(first.keys() & second.keys())
    ]
    return bootstrap_mean(np.stack(points, axis=1))


def main_table(results: dict[str, dict[int, dict[str, Any]]], families: Sequence[str]) -> str:
    """Formats one row per method with mean ± sd over seeds."""
    rows = []
    for family in families:
        runs = results.get(family, {})
        if not runs:
            continue

        def column(name: str, runs: dict[int, dict[str, Any]] = runs) -> list[float]:
            return [run[name] for run in runs.values()]

        beaten = win_rates(runs, results["sft"])
        against = win_rates(results["dro_v"], runs) if "dro_v" in results else []
        rows.append(
            {
                "method": TITLES[family],
                "reward": spread(column("reward")),
                "slot error %": spread(column("slot_error_rate"), 1, 100),
                "greedy slot error %": spread(column("greedy_slot_error_rate"), 1, 100),
                "wins over SFT %": "-" if family == "sft" else spread(beaten, 1, 100),
                "DRO-V wins over it %": "-" if family == "dro_v" else spread(against, 1, 100),
                "KL, nats": spread([run["kl"]["mean"] for run in runs.values()], 2),
                "length": spread(column("length"), 1),
                "chosen": _chosen(runs),
                "seeds": len(runs),
            }
        )
    return markdown_table(rows)


def orderings_table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Compares the paper's orderings with ours, by win rate."""
    rows = []
    for better, worse, claim in ORDERINGS:
        rates = win_rates(results.get(better, {}), results.get(worse, {}))
        if not rates:
            continue
        interval = _interval(results[better], results[worse])
        if interval.low > 0.5 and min(rates) > 0.5:
            verdict = "holds"
        elif interval.high < 0.5 and max(rates) < 0.5:
            verdict = "reversed"
        else:
            verdict = "no significant difference"
        rows.append(
            {
                "paper": claim,
                "win rate here %": spread(rates, 1, 100),
                "95 % over acts": f"{100 * interval.low:.1f} to {100 * interval.high:.1f}",
                "verdict": verdict,
            }
        )
    return markdown_table(rows)


def search_table(folder: Path) -> str:
    """Formats the mean reward on the validation acts for every method and learning rate of the search (seed 0)."""
    rows = []
    for name in METHODS:
        row: dict[str, Any] = {"method": name}
        for rate in LEARNING_RATES:
            result = read_result(folder, f"search/{name}/lr{rate:g}")
            row[f"lr {rate:g}"] = (
                "-" if result is None else f"{result['reward']:.3f} (KL {result['kl']['mean']:.1f})"
            )
        rows.append(row)
    return markdown_table(rows)


def caveats(results: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """Returns the limitations of the tables, as a list in Markdown."""
    runs = {
        family: next(iter(results[family].values())) for family in FAMILIES if family in results
    }
    at_the_edge = [
        TITLES[family]
        for family, run in runs.items()
        if run.get("learning_rate") in (min(LEARNING_RATES), max(LEARNING_RATES))
    ]
    kl = {
        TITLES[family]: float(np.mean([run["kl"]["mean"] for run in results[family].values()]))
        for family in runs
    }
    lines = [
        f"The search was not equal: the two forms of KTO had {len(LEARNING_RATES) * len(KTO_BETAS)} settings ({len(LEARNING_RATES)} "
        f"learning rates, {len(KTO_BETAS)} betas), every other method had {len(LEARNING_RATES)} (DRO's tau was always 1), all with one "
        "seed.",
    ]
    if at_the_edge:
        lines.append(
            f"With {len(LEARNING_RATES)} learning rates every choice is at an edge of the grid"
            + (
                f", and all methods chose the larger rate ({max(LEARNING_RATES):g}): a still larger rate may be better for some methods."
                if all(run.get("learning_rate") == max(LEARNING_RATES) for run in runs.values())
                else "."
            )
        )
    if kl:
        least, most = min(kl, key=lambda name: kl[name]), max(kl, key=lambda name: kl[name])
        lines.append(
            f"Methods end at different distances from SFT, from {kl[least]:.2f} nats ({least}) to {kl[most]:.2f} ({most}): more reward at "
            "more KL is another point of the trade-off, and does not alone mean a better method. A comparison with equal search: "
            "[equal_footing.md](equal_footing.md)."
        )
    return [f"- {line}" for line in lines]


def report(folder: Path) -> str:
    """Returns the whole page."""
    results = load(folder)
    data = read_result(folder, "data") or {"acts": {}}
    samples = read_result(folder, "samples/seed0") or {"train": {}}
    acts = ", ".join(f"{count:,} {split}" for split, count in data["acts"].items())
    counts = ", ".join(
        f"{samples['train'].get(name, 0):,} {title}"
        for name, title in (
            ("responses", "triplets"),
            ("pairs", "pairs"),
            ("filtered", "filtered"),
            ("best", "best-of-4"),
        )
    )
    hours = _hours(folder)
    return "\n".join(
        [
            "# RNNLG dialogue acts: DRO and other methods",
            "",
            "    python -m studies.rnnlg --data DATA --output runs/rnnlg --workers 2",
            "    python -m studies.rnnlg_report --runs runs/rnnlg --output docs/results/rnnlg.md",
            "",
            "The data are RNNLG (restaurant, hotel, laptop, tv) with delexicalised slot values, as in the literature. Distinct acts:",
            f"{acts}; no act is in two splits. A T5 1.1 of one million parameters is trained on the human",
            f"sentences ({SFT_STEPS:,} packed steps) and then generates {SAMPLES_PER_ACT} samples per training act at temperature 1.",
            "Feedback is minus the fraction of slots that are wrong (missing or invented), counted exactly. Seed 0 has",
            f"{counts}. Every method starts from the SFT policy and gets {UPDATES} updates of about",
            "32 of these responses (packed rows) with AdamW and cosine decay.",
            "The learning rate (and beta for KTO) is chosen",
            "on the validation acts with seed 0. The tables show one sample at temperature 1 per test act,",
            "mean ± sd over seeds (each seed has its own SFT policy and its own feedback). A tie counts half. KL is from the",
            "SFT policy, estimated by sampling. Ablations use DRO-V's learning rate. The factor 1/tau on the update makes tau 0.1 learn",
            "ten times as fast and tau 5 five times as slow; the paper's sweep has this confound too.",
            f"Total compute: {hours:.1f} core-hours.",
            "",
            "## Limitations",
            "",
            *caveats(results),
            "",
            "## Methods",
            "",
            main_table(results, ("sft", *FAMILIES)),
            "",
            "## Ablations of DRO-V (tau 1, separate networks, a value per prompt)",
            "",
            main_table(results, ("dro_v", *ABLATIONS)),
            "",
            "## The paper's orderings",
            "",
            "The orderings are by head-to-head win rate on the test acts. In the paper, a language model judges T5-L on UltraFeedback.",
            "An ordering holds or is reversed only if all seeds and the interval are on one side of 50 %.",
            "",
            orderings_table(results),
            "",
            "## Search (validation acts, seed 0): mean reward",
            "",
            search_table(folder),
        ]
    )


def _chosen(runs: dict[int, dict[str, Any]]) -> str:
    run = next(iter(runs.values()))
    if "learning_rate" not in run:
        return "-"
    beta = next(
        (f", beta {beta:g}" for beta in KTO_BETAS if run["method"].endswith(f"_beta{beta:g}")), ""
    )
    return f"lr {run['learning_rate']:g}{beta}"


def _hours(folder: Path) -> float:
    results = (
        read_result(folder, str(path.parent.relative_to(folder)))
        for path in folder.rglob("result.json")
    )
    return sum(result["seconds"] for result in results if result) / 3600


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "rnnlg", report)


if __name__ == "__main__":
    main()
