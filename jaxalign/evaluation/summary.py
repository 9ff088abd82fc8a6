"""The printed summary of an evaluation, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.evaluation.ranking import OWN_METHODS
from jaxalign.evaluation.statistics import LEAST
from jaxalign.evaluation.tables import format_cell, format_interval, format_spread, text_table

_NAME_WIDTH = 16


def summary_text(result: Mapping[str, Any]) -> str:
    """Returns the tables of evaluation.json: policies, head to head, V, ranking, and the plots' paths."""
    settings, policies = result["settings"], result["policies"]
    blocks = [f"{settings['num_prompts']} prompts of {settings['prompts']}", *cautions(result)]
    if settings["judges"]:
        blocks.append(_policies(result))
        if len(policies) > 2:
            blocks += [_head_to_head(judge, rates) for judge, rates in result["win_rates"].items()]
        if len(settings["judges"]) > 1:
            blocks.append(_judges(result))
    blocks += [_agreement(result.get("judge_agreement", {}))]
    blocks += [_values(policies), _ranking(policies)]
    blocks = [block for block in blocks if block]
    if result.get("plots"):
        blocks.append("plots:\n" + "\n".join(f"  {path}" for path in result["plots"]))
    return "\n\n".join(blocks)


def _agreement(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns how far the judges agree with logged feedback; empty if that was not measured."""
    rows = [
        {
            "judge": judge,
            "AUC": format_interval(ranking["auc"], ranking["auc_low"], ranking["auc_high"]),
            "pairs in order": ranking["pairwise_accuracy"],
            "pairs": ranking["pairs"],
            "Spearman": ranking["spearman"],
            "n (responses)": ranking["responses"],
        }
        for judge, ranking in found.items()
        if ranking.get("auc") is not None
    ]
    if not rows:
        return ""
    return (
        "agreement of the judges with logged feedback (0.5 is chance for AUC and pairs in order):\n"
        + text_table(rows)
    )


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Returns lines about records and prompts that were left out or cut before measuring; empty if there were none."""
    lines = []
    policies = result["policies"]
    if len(policies) == 1 and next(iter(policies.values())).get("is_reference"):
        lines.append(
            f"{_short(next(iter(policies)))} is its own reference, so its KL and log-ratios are 0 by definition; --reference=PATH "
            "names another"
        )
    if rejected := result["settings"]["rejected"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        lines.append(f"records left out: {reasons}")
    for name, report in result["policies"].items():
        shares = [
            f"{report[key]:.1%} {what}"
            for key, what in (
                ("cut_prompts", "of the prompts cut"),
                ("unknown_pieces", "unknown pieces in prompts"),
                ("unfinished", "of the responses unfinished"),
            )
            if report.get(key)
        ]
        if shares:
            lines.append(f"{_short(name)}: {', '.join(shares)}")
    return ["\n".join(lines)] if lines else []


def interval_note(settings: Mapping[str, Any]) -> str:
    """Returns what the intervals of an evaluation are, or why there are none."""
    if settings.get("bootstrap") and settings.get("num_prompts", 0) >= LEAST:
        return "95 % bootstrap interval over prompts"
    return f"no intervals without resamples, or with fewer than {LEAST} prompts"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."


def _interval(estimate: Mapping[str, Any]) -> str:
    return format_interval(estimate["mean"], estimate["low"], estimate["high"])


def _policies(result: Mapping[str, Any]) -> str:
    policies, judge = result["policies"], result["settings"]["judges"][0]
    first = next(iter(policies))
    rows = []
    for name, report in policies.items():
        row: dict[str, Any] = {"policy": _short(name), "reward": report["rewards"][judge]["mean"]}
        if "slot_error_rate" in report:
            row["slot error"] = report["slot_error_rate"]
        if len(policies) > 1:
            rate = result["win_rates"][judge][name].get(first)
            row[f"win rate vs {_short(first)}"] = _interval(rate) if rate else "-"
        if "kl" in report:
            spread = format_spread(report["kl"]["mean"], report["kl"]["standard_error"], 2)
            row["KL"] = "0 (reference)" if report.get("is_reference") else spread
        row["tokens"] = format_cell(report["length"], 1)
        row["dist-1"], row["dist-2"] = report["distinct_1"], report["distinct_2"]
        rows.append(row)
    notes = f"reward: judge {judge}"
    if len(policies) > 1:
        notes += "; win rate: ties half"
        notes += f"; {interval_note(result['settings'])}"
    if any("kl" in report for report in policies.values()):
        names = [_short(name) for name, report in policies.items() if report.get("is_reference")]
        reference = names[0] if names else result["settings"]["reference"]
        notes += f"\nKL: nats a response from the reference, {reference}; ± standard error"
    return f"{text_table(rows)}\n{notes}"


def _head_to_head(judge: str, rates: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for first in rates:
        row: dict[str, Any] = {f"row over column ({judge})": _short(first)}
        for second in rates:
            estimate = rates[first].get(second)
            row[_short(second)] = estimate["mean"] if estimate else "-"
        rows.append(row)
    return text_table(rows)


def _judges(result: Mapping[str, Any]) -> str:
    return text_table(
        [
            {
                "mean score": _short(name),
                **{j: _interval(report["rewards"][j]) for j in result["settings"]["judges"]},
            }
            for name, report in result["policies"].items()
        ]
    )


def _values(policies: Mapping[str, Any]) -> str:
    rows = [
        {
            "V against r - tau * log-ratio": f"{_short(name)}, {where}",
            "n": found["count"],
            "mean V": found["mean_value"],
            "mean target": found["mean_target"],
            "correlation": found["correlation"],
            "by prompt": found["prompt_correlation"],
            "slope": found["slope"],
            "R^2": found["r_squared"],
            "rms residual": found["rms_residual"],
        }
        for name, report in policies.items()
        for where, found in report.get("value", {}).items()
    ]
    notes = "at the optimum: equal means, slope 1; by prompt: correlation of V with the mean target of a prompt's responses"
    return f"{text_table(rows)}\n{notes}" if rows else ""


def _ranking(policies: Mapping[str, Any]) -> str:
    """Returns a table of the methods of every policy; the baselines, which are equal for all policies, appear once."""
    rows, shown = [], set()
    for name, report in policies.items():
        for method, result in report.get("ranking", {}).items():
            own = method.startswith(OWN_METHODS)
            label = f"{_short(name)}: {method}" if own else method
            # The reference's own log-ratio is 0 everywhere and ranks nothing.
            if label in shown or (own and result["spearman"] is None):
                continue
            shown.add(label)
            rows.append(
                {
                    "ranking of logged responses": label,
                    "Spearman": _bounds(result, "spearman"),
                    "AUC": _bounds(result, "auc"),
                    "n": result["responses"],
                    "pairs in order": result["pairwise_accuracy"],
                    "pairs": result["pairs"],
                    "order": own,
                }
            )
    # The baselines come last.
    rows.sort(key=lambda row: not row.pop("order"))
    notes = dict.fromkeys(
        note
        for report in policies.values()
        for result in report.get("ranking", {}).values()
        for note in interval_notes(result)
    )
    return "\n".join([text_table(rows), *notes]) if rows else ""


def interval_notes(result: Mapping[str, Any]) -> list[str]:
    """Returns why a ranking has no interval, or what its interval allows for."""
    notes = []
    if result["spearman"] is not None and result["spearman_low"] is None:
        notes.append(f"no intervals without resamples, or with fewer than {LEAST} prompts")
    rarer = min(result["good"], result["responses"] - result["good"])
    if not notes and result["auc_low"] is None and rarer < LEAST:
        kind = "good" if rarer == result["good"] else "bad"
        notes.append(f"no interval of the AUC: only {rarer} {kind} responses, fewer than {LEAST}")
    if result["auc_undefined"]:
        notes.append(
            f"{result['auc_undefined']} resamples without good or without bad responses: any AUC is allowed for them in the interval"
        )
    return notes


def _bounds(result: Mapping[str, Any], name: str) -> str:
    mean, low, high = (result[name + end] for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    return format_interval(mean, low, high, 2)
