"""The rate of batches of the input pipeline, compared with the step rate of the smallest model that trains on them.

    python benchmarks/input_pipeline.py --shared ../shared/data

Reads a cache with `jaxalign.data.pipeline.make_dataset` (shuffled, endless, as in training), unpacked and packed, and trains the
model of `make demo` on such batches. The aim is a pipeline ten times as fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import SMALLEST_MODEL, Comparison, Worker, alternate, print_table, run_for, serve

HERE = Path(__file__).parent
LENGTHS = {"inputs": 128, "targets": 128}
UNPACKED_ROWS, PACKED_ROWS, EXAMPLES_PER_ROW = 32, 8, 16


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, cache_dir in caches(options.shared, Path(folder)):
            for pack in (False, True):
                rows.append(measure(name, cache_dir, pack, options))
    header = ("data", "batches/s", "steps/s", "ratio", "range", "CPU-time ratio", "examples/batch")
    title = (
        f"Input pipeline against SFT steps of a T5 with {SMALLEST_MODEL}, {options.threads} threads"
    )
    print_table(title, header, rows)


def caches(data_dir: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Makes caches of the bundled task and, if its file exists, of rnnlg."""
    from jaxalign.data import cache, sources, task_registry, train_vocabulary, vocabularies

    def make(name: str, source: Any, texts: str) -> str:
        model = str(folder / f"{name}.model")
        train_vocabulary.train_vocabulary(texts, model, vocab_size=1000)
        cache.cache_source(
            source,
            str(folder / name),
            name=name,
            vocabulary=vocabularies.vocabulary_from_spec(model),
            splits=("train",),
            limits=cache.Limits(*LENGTHS.values(), duplicates="keep"),
        )
        return str(folder / name)

    bundled = "synthetic_triplets"
    yield bundled, make(bundled, task_registry.resolve_source(bundled), bundled)
    file = data_dir / "rnnlg.seq2seq.train.jsonl"
    if file.exists():
        source = sources.JsonlSource({"train": str(file)}, "seq2seq", duplicates="keep")
        yield "rnnlg", make("rnnlg", source, str(file))
    else:
        print(f"rnnlg: skipped, {file} does not exist")


def measure(name: str, cache_dir: str, pack: bool, options: argparse.Namespace) -> list[str]:
    """Measures one row of the table."""
    arguments = {"cache_dir": cache_dir, "pack": pack}
    pipeline = Worker(__file__, {**arguments, "side": "pipeline"}, options.threads)
    training = Worker(__file__, {**arguments, "side": "training"}, options.threads)
    pairs = alternate(
        options.pairs,
        lambda: pipeline.ask(seconds=options.seconds),
        lambda: training.ask(seconds=options.seconds),
    )
    pipeline.close()
    training.close()

    def rates(seconds: str) -> Comparison:
        a, b = ([pair[side]["calls"] / pair[side][seconds] for pair in pairs] for side in (0, 1))
        return Comparison(a, b)

    label = f"{name}, {f'packed x {PACKED_ROWS}' if pack else f'unpacked x {UNPACKED_ROWS}'}"
    cells = rates("wall").cells()
    return [label, *cells, rates("cpu").cells()[2], f"{pipeline.about['examples']:.1f}"]


def start(arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """See `common.serve`."""
    from jaxalign.data.pipeline import DatasetSettings, make_dataset
    from jaxalign.data.task_cache import TaskCache

    settings = DatasetSettings(
        feature_lengths=LENGTHS,
        batch_size=PACKED_ROWS if arguments["pack"] else UNPACKED_ROWS,
        pack=arguments["pack"],
        max_examples_per_row=EXAMPLES_PER_ROW,
    )
    batches = iter(make_dataset(TaskCache(arguments["cache_dir"]), "train", settings))
    examples = [int((next(batches)["prompt_ids"] > 0).sum()) for _ in range(8)]
    about = {"examples": sum(examples) / len(examples)}
    if arguments["side"] == "pipeline":
        return about, lambda seconds: run_for(seconds, lambda _: next(batches))

    import jax
    from jaxalign_steps import make_step

    from jaxalign.networks.config import T5Config

    batch = next(batches)
    step, state = make_step(T5Config(**SMALLEST_MODEL), "sft", batch)
    state, metrics = step(state, {}, batch)
    jax.block_until_ready(metrics)
    # The pipeline has stopped: a full prefetch buffer waits without using a core.
    held = [next(batches) for _ in range(4)]

    def one(index: int) -> None:
        nonlocal state
        state, metrics = step(state, {}, held[index % len(held)])
        jax.block_until_ready(metrics["loss"])

    return about, lambda seconds: run_for(seconds, one)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        serve(start)
    else:
        main()
