"""The page of the equal-footing study, from its run folder: ``python -m studies.equal_footing_report``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.statistics import Estimate, bootstrap_mean
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.equal_footing import SEEDS, UPDATES, seed_results, selected
from studies.equal_footing_forms import ACTS
from studies.equal_footing_judging import JUDGED
from studies.equal_footing_methods import LEARNING_RATES, METHODS
from studies.formatting import spread

# The method with which the others are compared.
BASELINE = "dro_v"
Results = dict[str, list[dict[str, Any]]]
Columns = dict[str, Callable[[dict[str, Any]], float]]


def report(folder: Path) -> str:
    """Returns the page with the methods whose runs have finished; it names the other methods."""
    found = {
        task: {
            name: seed_results(folder, task, name) for name, m in METHODS.items() if task in m.tasks
        }
        for task in UPDATES
    }
    parts = [
        _INTRODUCTION.format(
            rates=" and ".join(f"{rate:g}" for rate in LEARNING_RATES),
            rnnlg=UPDATES["rnnlg"],
            ratings=UPDATES["nlg_ratings"],
            validation=JUDGED["validation"],
            test=JUDGED["test"],
            acts=ACTS,
        ),
        _samples_section(folder, found["rnnlg"]),
        _ranking_section(folder, found["nlg_ratings"]),
    ]
    for task, results in found.items():
        missing = [f"`{name}`" for name, runs in results.items() if len(runs) < len(SEEDS)]
        if missing:
            parts.append(
                f"**{task}: {len(missing)} of {len(results)} methods have not run with all seeds**: {', '.join(missing)}.\n"
            )
    return "\n".join(parts)


def _samples_section(folder: Path, results: Results) -> str:
    columns: Columns = {
        "reward": lambda test: test["reward"],
        "slot errors, %": lambda test: 100 * test["slot_error_rate"],
        "KL, nats": lambda test: test["kl"],
        "length": lambda test: test["length"],
        "distinct-2": lambda test: test["distinct_2"],
    }
    differences = _differences(results)
    lines = [
        "## rnnlg: samples judged by exact slot errors\n",
        _sft_line(folder),
        *_table(
            folder,
            "rnnlg",
            results,
            columns,
            digits=(3, 1, 2, 1, 3),
            extra={
                f"reward minus that of {BASELINE}": {
                    name: f"{each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
                    for name, each in differences.items()
                }
            },
        ),
        _comparison_line(differences, len(SEEDS)),
        _similar_kl_line(results),
        _equal_runs_lines(results),
    ]
    return "\n".join(lines) + "\n"


def _differences(results: Results) -> dict[str, Estimate]:
    """Computes rewards minus those of the baseline on the same acts, averaged over common seeds; 95 % bootstrap over acts."""
    found: dict[str, Estimate] = {}
    baseline = results.get(BASELINE, [])
    for name, runs in results.items():
        seeds = min(len(runs), len(baseline))
        if name == BASELINE or not seeds:
            continue
        rewards = [
            np.mean([run["test"]["rewards"] for run in each[:seeds]], axis=0)
            for each in (runs, baseline)
        ]
        found[name] = bootstrap_mean(rewards[0] - rewards[1])
    return found


def _comparison_line(differences: Mapping[str, Estimate], seeds: int) -> str:
    """States which methods differ from the baseline by their intervals."""
    if not differences:
        return ""
    above = [f"`{name}`" for name, each in differences.items() if each.low > 0]
    below = [f"`{name}`" for name, each in differences.items() if each.high < 0]
    rest = len(differences) - len(above) - len(below)
    higher, lower = (f"{len(each)} ({', '.join(each) or 'none'})" for each in (above, below))
    return (
        f"Compared with `{BASELINE}` on the same acts (95 % bootstrap over acts, mean of {seeds} seeds, without the spread over seeds), "
        f"the reward is higher for {higher}, lower for {lower}, and the interval contains 0 for {rest}. Methods end at different KL from "
        "their SFT policy, so a higher reward alone does not mean a better trade-off.\n"
    )


def _similar_kl_line(results: Results) -> str:
    """Lists the methods with about the KL of the baseline or less, by reward."""
    means = {
        name: [float(np.mean([run["test"][key] for run in runs])) for key in ("reward", "kl")]
        for name, runs in results.items()
        if runs
    }
    if BASELINE not in means:
        return ""
    limit = 1.25 * means[BASELINE][1]
    close = sorted((-reward, name) for name, (reward, kl) in means.items() if kl <= limit)
    listed = ", ".join(
        f"`{name}` {-reward:.3f} (KL {means[name][1]:.2f})" for reward, name in close
    )
    return f"Methods within 1.25 times its KL, {limit:.2f} nats, in order of reward: {listed}.\n"


def _equal_runs_lines(results: Results) -> str:
    """Lists methods with equal results on every act, with the reason if it is KTO's reference point."""
    groups: dict[str, list[str]] = {}
    for name, runs in results.items():
        if runs:
            groups.setdefault(str([run["test"]["rewards"] for run in runs]), []).append(name)
    lines = []
    for names in groups.values():
        if len(names) < 2:
            continue
        points = [run["train"].get("reference_point") for name in names for run in results[name]]
        zero = "kto" in names and all(point in (None, 0.0) for point in points)
        reason = (
            ". KTO's reference point was clamped to 0, because the policy gives responses of other prompts a lower probability than its "
            "reference does, and KTO's two labelling rules agree on these data"
        )
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(
            f"These methods have equal results on every act: {listed}{reason if zero else ''}.\n"
        )
    return "\n".join(lines)


def _sft_line(folder: Path) -> str:
    """States the results of the SFT policies on the same acts."""
    found = [read_result(folder, f"rnnlg/prepared/seed{seed}") for seed in SEEDS]
    tests = [each["test"] for each in found if each]
    if not tests:
        return ""
    return (
        f"Results of the SFT policies, from which all methods start: reward {spread([test['reward'] for test in tests], 3)}, slot errors "
        f"{spread([100 * test['slot_error_rate'] for test in tests], 1)} %, length {spread([test['length'] for test in tests], 1)}.\n"
    )


def _ranking_section(folder: Path, results: Results) -> str:
    columns: Columns = {
        "Spearman": lambda test: test["spearman"],
        "mean log-ratio": lambda test: test["log_ratio"],
        "log-ratio deviation": lambda test: test["log_ratio_std"],
        "correlation with length": lambda test: test["length_correlation"],
    }
    some = next((runs for runs in results.values() if runs), None)
    baselines = ""
    if some is not None:
        values = some[0]["test"]["baselines"]
        shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        low, high = some[0]["test"]["interval"]
        baselines = (
            f"{some[0]['test']['responses']} test sentences. Baselines on the same sentences (seed 0): {shown}. The sampling error is\n"
            "larger than the spread over seeds, because the seeds share the sentences: the correlation of the first method that ran\n"
            f"has the bootstrap interval [{low:.2f}, {high:.2f}].\n"
            "Differences between neighbouring rows are therefore not significant.\n"
        )
    lines = [
        "## nlg_ratings: held-out sentences ranked by the log-ratio, against human ratings of quality\n",
        baselines,
        *_table(folder, "nlg_ratings", results, columns, digits=(3, 2, 2, 2)),
    ]
    return "\n".join(lines) + "\n"


def _table(
    folder: Path,
    task: str,
    results: Results,
    columns: Columns,
    digits: Sequence[int],
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """Formats one row per method, best score first: mean and standard deviation over seeds on the test split, and ``extra`` columns."""
    extra = extra or {}
    header = ["method", "family", *columns, *extra, "seeds", "responses per update", "chosen", "lr"]
    rows = []
    for name, runs in results.items():
        if not runs:
            continue
        tests = [run["test"] for run in runs]
        setting = selected(folder, task, name)
        assert setting is not None
        cells = [
            spread([column(test) for test in tests], places)
            for column, places in zip(columns.values(), digits, strict=True)
        ]
        method = METHODS[name]
        chosen = "" if method.strength is None else f"{method.strength[0]} {setting[0]}"
        read = f"{runs[0]['responses'] / UPDATES[task]:.0f}"
        further = [column.get(name, "") for column in extra.values()]
        count = str(len(runs))
        row = [f"`{name}`", method.family, *cells, *further, count, read, chosen, f"{setting[1]:g}"]
        rows.append((float(np.mean([test["score"] for test in tests])), row))
    if not rows:
        return ["No method has finished on this task.\n"]
    rows.sort(key=lambda item: -item[0])
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(row)} |" for _, row in rows),
        "",
    ]


_INTRODUCTION = """# Methods on an equal footing

    python -m studies.equal_footing --data <folder with the JSON Lines files> --workers 2
    python -m studies.equal_footing_report

Every method reads annotations of the same responses in the form that it needs (pairs omit prompts without a preferred response, best-of-n
keeps one response per prompt). It is configured by its own gin file and trained with AdamW (20 warm-up steps, cosine, clipped at 1):
{rnnlg} updates on `rnnlg` and {ratings} on `nlg_ratings`, of about 30 responses each. Two hyperparameters are searched with two values
each, the learning rate ({rates}) and the method's own strength; a method without a strength gets four learning rates in the same
range. Each method thus has four runs of one seed. A validation split selects the setting, which is then trained with two more seeds.
Tables show the test split: mean and standard deviation over seeds. On `rnnlg` every seed has its own SFT policy and its own samples, on
`nlg_ratings` its own SFT policy. The model is a T5 of one million parameters. On `rnnlg`, samples of {acts:,} acts are for training,
{validation} acts for validation and {test} for the test. DRO runs with `RESCALE = 'none'`, so that its learning rate has the same meaning
as that of the other methods; RPO runs with `SCALE = 'row_sum'` for the same reason. Advantages come from a value network, all of whose
parameters are trained for 150 further updates.

`spa`, `selm` and `osp_logistic` are the losses alone, on labels of the exact judge: the systems around them, which label their own samples
round after round, are [recipes of rounds](../rounds.md), and these tables say nothing about them.
"""


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "equal_footing", report)


if __name__ == "__main__":
    main()
