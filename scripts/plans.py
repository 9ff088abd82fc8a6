"""Writes docs/results/plans: the memory and time that the DRO paper's runs, and a larger run, need on TPU slices.

    python scripts/plans.py [NAME ...]

compiles the named plans (by default all; each takes minutes) and writes the index of all existing plans. Needs libtpu.
"""

import json
import sys
from pathlib import Path

from jaxalign.cli.main import main as jaxalign
from jaxalign.planning.plan_report import gib, macros, seconds, table

FOLDER = Path("docs/results/plans")
PAPER = "--gin_file=experiments/dro_paper"
XXL = "--gin_file=models/flan_t5_xxl.gin"
XL = "--topology=v5e:4x8"
LARGE = "--topology=v5e:4x4"
PLANS = {
    "t5_large_dro_v": ("T5-L, DRO-V, v5e 4x4", (f"{PAPER}/t5_large_dro_v.gin", LARGE)),
    "t5_large_kto": ("T5-L, KTO, v5e 4x4", (f"{PAPER}/t5_large_kto.gin", LARGE)),
    "t5_large_dro_p": ("T5-L, DRO-P, v5e 4x4", (f"{PAPER}/t5_large_dro_p.gin", LARGE)),
    "t5_xl_dro_v": ("T5-XL, DRO-V, v5e 4x8", (f"{PAPER}/t5_xl_dro_v.gin", XL)),
    "t5_xl_kto": ("T5-XL, KTO, v5e 4x8", (f"{PAPER}/t5_xl_kto.gin", XL)),
    "t5_xl_dro_p": ("T5-XL, DRO-P, v5e 4x8", (f"{PAPER}/t5_xl_dro_p.gin", XL)),
    "t5_xxl_dro_v": ("T5-XXL, DRO-V, v5e 4x8", (f"{PAPER}/t5_xl_dro_v.gin", XXL, XL)),
    **{
        name: (f"T5-L, {title}, v5e 4x4", (f"{PAPER}/{name}.gin", LARGE))
        for name, title in (
            ("double_network_single_value", "double network, single value"),
            ("double_network_single_value_learned", "double network, one learned value"),
            ("single_network_multiple_values", "single network, multiple values"),
            ("single_network_single_value", "single network, single value"),
            ("shared_encoder_multiple_values", "shared encoder, multiple values"),
            ("shared_encoder_single_value", "shared encoder, single value"),
        )
    },
    "t5gemma_2b_2b_dro_v": (
        "T5Gemma 2B-2B, DRO-V, v5e 4x4",
        (f"{PAPER}/t5_large_dro_v.gin", "--gin_file=models/t5gemma_2b_2b.gin", LARGE),
    ),
}
HEAD = """# Plans

The output of `jaxalign plan` for the runs of the DRO paper (Richemond et al. 2024, arXiv 2405.19107, section 5) on the slices that the
paper names, and for T5-XXL and T5Gemma. Batch 32, 512 + 512 tokens, Adafactor. Nothing here was measured on a TPU: memory and collectives
come from the compiler, operations are counted, and step times are bounds; [plan.md](../../plan.md) explains how each number is obtained.
Compile times are those of a shared machine with two cores. `python scripts/plans.py` made this page; the commands of the rows are

"""
FOOT = """

The lower bound of a step's time assumes that products, memory and links all run at their published peaks at the same time; the upper bound
is the sum of the three. The paper reports 2 seconds per step for T5-L and 10 for T5-XL on these slices, and does not state its
lengths. All runs of T5 leave most of a chip's memory free. With one or two rows per chip, gathering the parameters takes about as long as
the matrix products, or longer: more rows per step would use the chips better.

The other files of `experiments/dro_paper` change numbers only (learning rates, tau, the number of steps), so they compile to the
program of `t5_large_dro_v` or `t5_large_kto` with other constants; `tests/gin_configs/test_dro_paper.py` compares the programs.
"""


def write_index() -> None:
    """Writes the tables of all existing plans, and their index."""
    commands, rows = [], []
    for name, (title, flags) in PLANS.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            continue
        plan = json.loads(path.read_text(encoding="utf-8"))
        (FOLDER / f"{name}.md").write_text(table(plan) + "\n", encoding="utf-8")
        commands.append(f"jaxalign plan {' '.join(flags)}")
        found = plan["with_change"] or plan
        memory, bound = found["memory"], found["roofline"]
        fits = (
            "yes" if plan["fits"] else f"with {macros(plan['change'])}" if plan["change"] else "no"
        )
        row = [
            f"[{title}]({name}.md)",
            f"{sum(plan['run']['parameters'].values()) / 1e9:.2f} B",
            fits,
            f"{gib(memory['peak'])} of {gib(memory['chip'])}",
            f"{found['flops']['step'] / 1e12:,.0f} TFLOP",
        ]
        if bound is None:
            row += ["", ""]
        else:
            row += [
                f"{seconds(bound['lower_seconds'])} to {seconds(bound['upper_seconds'])}",
                f"{bound['bound_by']}",
            ]
        rows.append([*row, f"{found['compile']['seconds']:.0f} s"])
    columns = (
        "run",
        "trained parameters",
        "fits",
        "peak of a chip",
        "products of a step",
        "step time (bounds)",
        "bound by",
        "compile",
    )
    lines = [
        "```bash",
        *commands,
        "```",
        "",
        f"| {' | '.join(columns)} |",
        "| --- |" * len(columns),
    ]
    lines[-1] = "| " + " | ".join(["---"] * len(columns)) + " |"
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (FOLDER / "README.md").write_text(HEAD + "\n".join(lines) + FOOT, encoding="utf-8")


def main(names: list[str]) -> int:
    """Compiles the named plans, or all, and writes the index."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or PLANS:
        title, flags = PLANS[name]
        code = jaxalign(["plan", *flags, f"--title={title}", f"--output={FOLDER / name}"])
        if code:
            return code
        write_index()
    write_index()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
