"""`jaxalign cache` of many short records in one process: CPU time of its parts, records per CPU second, and peak memory.

    python benchmarks/cache.py --vocabulary ../shared/data/tokenizers/t5_cc_all_32000.model

The records are random words, 12 in a prompt and 10 in a response. The parts run one after another on the first `--part` records; the whole
command also has a progress line, counters and a fixed cost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import print_table


def write_records(path: Path, count: int) -> None:
    """Writes triplets of random words, the same ones every time."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(3000)]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            prompt, response = (" ".join(generator.choices(words, k=k)) for k in (12, 10))
            feedback = round(generator.random(), 3)
            line = {"prompt": prompt, "response": response, "feedback": feedback}
            file.write(json.dumps(line) + "\n")


def parts(path: Path, vocabulary: str) -> dict[str, float]:
    """Returns the CPU seconds of the parts of the command on the records of a file."""
    from array_record.python import array_record_module

    from jaxalign.data import sources, tokenization, validation
    from jaxalign.data.examples import encode_example
    from jaxalign.data.json_lines import read_json_lines
    from jaxalign.data.rejections import RejectionLog
    from jaxalign.data.split_summary import SplitSummary
    from jaxalign.data.vocabularies import vocabulary_from_spec

    found: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = function()
        found[name] = time.process_time() - started
        return result

    words, limits, log = vocabulary_from_spec(vocabulary, 0), tokenization.Limits(), RejectionLog()
    splits = ("train", "validation")
    source = sources.JsonlSource({"train": str(path)}, "triplet")
    logs = {split: RejectionLog() for split in splits}
    timed("read lines", lambda: sum(1 for _ in read_json_lines(path, log=RejectionLog())))
    records = timed(
        "read, check and divide records",
        lambda: [record for _, record in source.records_by_split(splits, logs)],
    )
    folder = str(path.parent)
    seen = validation.Duplicates(folder)
    timed("find duplicates", lambda: [seen.is_new(record, log, "train") for record in records])
    tokens = timed("tokenise", lambda: list(tokenization.tokenize(records, words)))
    examples = timed(
        "check tokens, make examples",
        lambda: list(tokenization.make_examples(tokens, words, limits, log, kind="triplet")),
    )
    encoded = timed("encode", lambda: [encode_example(example) for example in examples])
    timed("digests", lambda: [hashlib.sha256(data).digest() for data in encoded])
    summary = SplitSummary(folder)
    timed("statistics", lambda: [summary.add(example) for example in examples])

    def write() -> None:
        writer = array_record_module.ArrayRecordWriter(f"{folder}/part", "group_size:1")
        for data in encoded:
            writer.write(data)
        writer.close()

    timed("write", write)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", default="bytes", help='"bytes" or a SentencePiece model')
    parser.add_argument("--records", type=int, default=100_000, help="of the whole command")
    parser.add_argument("--part", type=int, default=50_000, help="records of the parts")
    options = parser.parse_args()
    from jaxalign.data.cache import cache

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_records(path, options.records)
        started = time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            cache("words", f"{folder}/cache", vocabulary=options.vocabulary, train_file=str(path))
        seconds = time.process_time() - started
        # Before the parts, which hold all their records.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        os.remove(path)
        write_records(path, options.part)
        found = parts(path, options.vocabulary)
    rows = [[name, f"{1e6 * spent / options.part:.1f}"] for name, spent in found.items()]
    rows.append(["whole command", f"{1e6 * seconds / options.records:.1f}"])
    print_table(
        f"jaxalign cache, {options.records} records, {options.vocabulary.rsplit('/', 1)[-1]}: {options.records / seconds:.0f} records per "
        f"CPU second, peak {peak:.0f} MiB",
        ("part", "us of CPU time per record"),
        rows,
    )


if __name__ == "__main__":
    main()
