"""Plans as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 2**30


def table(plan: Mapping[str, Any]) -> str:
    """Formats the plan of a run on one topology."""
    topology, run = plan["topology"], plan["run"]
    lines = [f"# {plan['title']}", "", verdict(plan), "", *_rows(_run_rows(run, topology, plan))]
    lines += ["", *_outcome_lines(plan)]
    if plan["with_change"] is not None:
        lines += ["", f"## With {macros(plan['change'])}", "", *_outcome_lines(plan["with_change"])]
    if plan["trials"]:
        lines += ["", "Tried, in this order:", ""]
        for trial in plan["trials"]:
            peak = "" if trial["peak"] is None else f" at {gib(trial['peak'])}"
            verdict_text = "fits" if trial["fits"] else trial["reason"]
            lines.append(f"- {macros(trial['changes'])}: {verdict_text}{peak}")
    return "\n".join(lines)


def verdict(plan: Mapping[str, Any]) -> str:
    """States whether the run fits and, if not, which change makes it fit."""
    memory, topology = plan["memory"], plan["topology"]
    size = f"{gib(memory['peak'])} of {gib(memory['chip'])} on each of {topology['chips']} chips"
    if plan["fits"]:
        return f"**Fits:** {size}."
    reason = f"**Does not fit:** {size}; {plan['reason']}."
    if plan["change"] is not None:
        return f"{reason} The smallest change that fits: {macros(plan['change'])}."
    return (
        f"{reason} None of the {len(plan['trials'])} changes tried fits."
        if plan["trials"]
        else reason
    )


def comparison(result: Mapping[str, Any]) -> str:
    """Formats the comparison of topologies, with one row per topology."""
    run = result["run"]
    rows = [("topology", "fits", "peak of chip", "step time, no less than", "compile")]
    for each in result["topologies"]:
        if "memory" not in each:
            rows.append((each["topology"], "no", "", each["reason"], ""))
            continue
        memory, bound = each["memory"], each["roofline"]
        rows.append(
            (
                each["topology"],
                "yes" if each["fits"] else "no",
                f"{gib(memory['peak'])} of {gib(memory['chip'])}",
                each["reason"] if bound is None else seconds(bound["lower_seconds"]),
                f"{each['compile_seconds']:.0f} s",
            )
        )
    heading = f"# {run['objective']} on common topologies"
    return "\n".join([heading, "", *_grid(rows)])


def macros(changes: Mapping[str, Any]) -> str:
    """Formats changes as gin bindings."""
    return ", ".join(f"`{name} = {value!r}`" for name, value in changes.items())


def gib(number: float) -> str:
    """Formats a number of bytes in GiB or MiB."""
    return f"{number / GIB:.2f} GiB" if number >= 0.1 * GIB else f"{number * 1024 / GIB:.2f} MiB"


def seconds(number: float) -> str:
    """Formats a time in seconds or milliseconds."""
    return f"{number:.2f} s" if number >= 1 else f"{number * 1e3:.1f} ms"


def _run_rows(
    run: Mapping[str, Any], topology: Mapping[str, Any], plan: Mapping[str, Any]
) -> list[tuple[str, str]]:
    # Plans of earlier versions do not say what is frozen, because nothing was.
    trained = {**run["parameters"], **run.get("trained_parameters", {})}
    parameters = ", ".join(
        f"{role} {trained[role]:,}"
        + (f" (and {count - trained[role]:,} frozen)" if count > trained[role] else "")
        for role, count in run["parameters"].items()
    )
    network = run["network"] or {}
    frozen = ", ".join(run["frozen_roles"]) or "none"
    return [
        (
            "topology",
            f"{topology['name']}: {topology['chips']} chips with {gib(topology['memory_bytes'])}",
        ),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())),
        ("objective", run["objective"]),
        ("trained parameters", parameters),
        ("frozen roles in the step", frozen),
        (
            "batch",
            f"{run['batch_size']} rows of {run['input_tokens']} + {run['target_tokens']} tokens, {run['microbatches']} microbatch(es)",
        ),
        (
            "activations",
            f"{network.get('dtype', '?')}, remat_policy {network.get('remat_policy', '?')}, logits of {run['logits_chunk_size']} "
            "tokens at once",
        ),
    ]


def _outcome_lines(found: Mapping[str, Any]) -> list[str]:
    memory, flops, bound = found["memory"], found["flops"], found["roofline"]
    lines = ["| memory of a chip | |", "| --- | ---: |"]
    for name, label in (
        ("parameters", "parameters"),
        ("optimizer", "optimizer"),
        ("batch", "batch"),
        ("activations", "activations, gradients and work space"),
        ("program", "program"),
        ("peak", "**peak**"),
        ("chip", "the chip has"),
    ):
        lines.append(f"| {label} | {gib(memory[name])} |")
    lines += [
        "",
        *_rows(
            [
                ("matrix products of a step", f"{flops['step'] / 1e12:,.1f} TFLOP"),
                ("of them the model's own", f"{flops['model_step'] / 1e12:,.1f} TFLOP"),
                ("a chip's share", f"{flops['per_chip'] / 1e12:,.3f} TFLOP"),
                ("compile time", f"{found['compile']['seconds']:.0f} s on this machine"),
            ]
        ),
    ]
    if found["collectives"] is not None:
        rows: list[Sequence[str]] = [("collective", "count", "bytes", "sent by a chip")]
        for kind, each in found["collectives"]["kinds"].items():
            sizes = (f"{each[name] / 1e9:.3f} GB" for name in ("bytes", "sent_bytes"))
            rows.append((kind, f"{each['count']:,.0f}", *sizes))
        lines += ["", *_grid(rows)]
        unknown = found["collectives"]["unknown_loops"]
        if unknown:
            lines += ["", f"{len(unknown)} loop(s) of unknown length count once."]
    if bound is not None:
        lines += [
            "",
            *_rows(
                [
                    ("matrix products at the peak", seconds(bound["compute_seconds"])),
                    ("main memory at the peak", seconds(bound["memory_seconds"])),
                    ("interconnect at the peak", seconds(bound["interconnect_seconds"])),
                    (
                        "step time, between perfect and no overlap",
                        f"{seconds(bound['lower_seconds'])} to {seconds(bound['upper_seconds'])}",
                    ),
                    (
                        "MFU, between no and perfect overlap",
                        f"{bound['mfu_lower']:.0%} to {bound['mfu_upper']:.0%}",
                    ),
                    ("bound by", bound["bound_by"]),
                ]
            ),
        ]
    return lines


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body]
