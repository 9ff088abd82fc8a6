"""Write docs/results/plans: what the DRO paper's runs, and a larger one, need on TPU slices.

    python scripts/plans.py [NAME ...]

compiles the named plans (all by default; minutes each) and writes the index of those that are there. Needs libtpu.
"""

import json
import sys
from pathlib import Path

from jaxalign.cli.main import main as jaxalign
from jaxalign.planning.report import gib, macros, seconds, table

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
}
HEAD = """# Plans

What `jaxalign plan` says of the runs of the DRO paper (Richemond et al. 2024, arXiv 2405.19107, section 5) on the slices that it
names, and of T5-XXL. Batch 32, 512 + 512 tokens, Adafactor. Nothing here was measured on a TPU: memory and collectives are the
compiler's, operations are counted, and step times are bounds; [plan.md](../../plan.md) says how each number comes about. Compile
times are of a shared machine with two cores. Made by `python scripts/plans.py`; the command of each row is

"""
FOOT = """

The lower bound of a step's time supposes that products, memory and links all run at their published peaks at once; the upper one adds the
three up. The paper reports 2 seconds a step for T5-L and 10 for T5-XL on these slices, and does not say its
lengths. All these runs leave most of a chip's memory free. With one or two rows a chip, gathering the parameters takes about as long as
the matrix products, or longer: more rows a step would use the chips better.

The other files of `experiments/dro_paper` change numbers only (learning rates, tau, the count of steps), so they compile to the
program of `t5_large_dro_v` or `t5_large_kto` with other constants; `tests/gin_configs/test_dro_paper.py` compares the programs.
"""


def write_index() -> None:
    """Write the tables of the plans that are there, and their index."""
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
    """Compile the named plans, or all, and write the index."""
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
