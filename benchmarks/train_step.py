"""Training steps of SFT and DRO-V against PyTorch with Hugging Face transformers, on one machine, in one run.

    python benchmarks/train_step.py --shared ../shared/data

Both sides train the same T5 1.1 in float32 with forward pass, backward pass and AdamW update, without dropout, with two threads. `dense`
rows are full. For the length mixes, jaxalign packs rows, and PyTorch pads each batch to its longest example, as is common.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import MODEL, Comparison, Worker, alternate, print_table
from workloads import MIXES, dense, mixed, save

HERE = Path(__file__).parent
DENSE_ROWS, DENSE_LENGTH = 16, 64


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--workloads", default="dense,rnnlg,taskmaster3")
    parser.add_argument("--objectives", default="sft,dro_v")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.workloads.split(","):
            arguments = prepare(name, options.shared, Path(folder))
            if arguments is None:
                print(f"{name}: skipped, {options.shared / MIXES[name].file} does not exist")
                continue
            for objective in options.objectives.split(","):
                rows.append(measure(name, {**arguments, "objective": objective}, options))
    header = ("workload", "examples/s", "PyTorch", "ratio", "range", "tokens/s", "PyTorch")
    header += ("CPU-time ratio", "filled", "PyTorch", "peak MiB", "PyTorch")
    print_table(
        f"Training steps, T5 with {MODEL}, AdamW, float32, {options.threads} threads", header, rows
    )


def prepare(name: str, data_dir: Path, folder: Path) -> dict[str, Any] | None:
    """Returns the workers' arguments for a workload, or None if its data are missing."""
    path = folder / f"{name}.npz"
    arguments: dict[str, Any] = {"model": MODEL, "examples_file": str(path)}
    if name == "dense":
        save(dense(DENSE_ROWS, DENSE_LENGTH, MODEL["vocab_size"]), path)
        return {**arguments, "examples": DENSE_ROWS, "rows": None}
    mix = MIXES[name]
    examples = mixed(mix, data_dir, folder, MODEL["vocab_size"])
    if examples is None:
        return None
    save(examples, path)
    packing = {
        "rows": mix.rows,
        "row_lengths": mix.row_lengths,
        "examples_per_row": mix.examples_per_row,
    }
    return {**arguments, "examples": mix.examples, **packing}


def measure(name: str, arguments: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Measures one row of the table."""
    ours = Worker(str(HERE / "jaxalign_steps.py"), arguments, options.threads)
    theirs = Worker(str(HERE / "torch_steps.py"), arguments, options.threads)
    print(f"{name} {arguments['objective']}: {ours.about} {theirs.about}", file=sys.stderr)
    for worker in (ours, theirs):
        worker.ask(seconds=options.seconds / 2)
    pairs = alternate(
        options.pairs,
        lambda: ours.ask(seconds=options.seconds),
        lambda: theirs.ask(seconds=options.seconds),
    )
    rates = Comparison(*(_rates(pairs, "examples", "wall")))
    tokens = Comparison(*(_rates(pairs, "tokens", "wall")))
    cpu = Comparison(*(_rates(pairs, "examples", "cpu")))
    memory = [f"{pairs[-1][side]['memory']:.0f}" for side in (0, 1)]
    for worker in (ours, theirs):
        worker.close()
    cells = [
        f"{name} {arguments['objective']}",
        *rates.cells(),
        *tokens.cells()[:2],
        cpu.cells()[2],
        *(f"{worker.about['filled']:.0%}" for worker in (ours, theirs)),
        *memory,
    ]
    print(" ".join(cells), file=sys.stderr, flush=True)
    return cells


def _rates(pairs: list[Any], amount: str, seconds: str) -> tuple[list[float], list[float]]:
    ours, theirs = ([pair[side][amount] / pair[side][seconds] for pair in pairs] for side in (0, 1))
    return ours, theirs


if __name__ == "__main__":
    main()
