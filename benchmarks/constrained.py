"""The cost of constrained beam search: a trie of identifiers, against the same search without one.

    python benchmarks/constrained.py

Both search the same prompts with the same weights for as many positions, in turn in one process. Without a trie the random weights never
choose EOS. The aim is that the trie costs less than 1.2 times as much.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import jax
import numpy as np
from common import MODEL, Clock, Comparison, print_table

from jaxalign.networks.beam_search import beam_search
from jaxalign.networks.config import T5Config
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.networks.policy import Policy
from jaxalign.networks.token_bans import NoRepeatedNGram
from jaxalign.networks.trie import Trie


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt_length", type=int, default=24)
    parser.add_argument("--beams", type=int, default=10)
    parser.add_argument("--items", type=int, default=2000, help="responses of the trie")
    parser.add_argument("--length", type=int, default=5, help="tokens of an identifier, with EOS")
    parser.add_argument("--vocab", type=int, nargs="+", default=[1024, 32128])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--calls", type=int, default=4, help="in one measurement")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = [row for size in options.vocab for row in measure(size, options)]
    header = ("vocabulary, hook", "searches/s", "without", "cost, CPU time", "range", "cost, wall")
    title = (
        f"{options.rows} prompts, {options.beams} beams, {options.items} identifiers of "
        f"{options.length} tokens, one thread"
    )
    print_table(title, header, rows)


def measure(vocab_size: int, options: argparse.Namespace) -> list[list[str]]:
    """Measures the rows of one vocabulary."""
    random = np.random.default_rng(0)
    policy = Policy(T5Config(**{**MODEL, "vocab_size": vocab_size}))
    params = jax.tree.map(np.array, policy.init(jax.random.key(0)))
    params["decoder"]["logits_dense"]["kernel"][:, :2] = 0.0  # EOS is never probable
    params = jax.device_put(params)
    shape = (options.rows, options.prompt_length)
    prompts = random.integers(2, vocab_size, shape).astype(np.int32)
    # A block of tokens for each position, as generative retrieval has it.
    blocks = 2 + 64 * np.arange(options.length - 1)
    items = random.integers(0, 64, (options.items, options.length - 1)) + blocks
    hooks = {
        "trie": Hooks(Trie.from_sequences(items, vocab_size)),
        "trie, renormalised": Hooks(Trie.from_sequences(items, vocab_size), renormalize=True),
        "no repeated bigram": Hooks(NoRepeatedNGram(2)),
    }

    def search(hooks: Hooks) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            with Clock() as clock:
                for _ in range(options.calls):
                    found = beam_search(
                        policy, params, prompts, num_beams=options.beams, alpha=0.0,
                        max_decode_len=options.length, hooks=hooks,
                    )  # fmt: skip
                    jax.block_until_ready(found)
            return {"cpu": clock.cpu, "wall": clock.wall}

        run()  # compiles
        return run

    free = search(NO_HOOKS)
    rows = []
    for name, hook in hooks.items():
        constrained = search(hook)
        pairs = [(constrained(), free()) for _ in range(options.pairs)]
        cpu, wall = (
            Comparison(
                [options.calls / pair[1][clock] for pair in pairs],
                [options.calls / pair[0][clock] for pair in pairs],
            )
            for clock in ("cpu", "wall")
        )
        theirs, ours, ratio, span = cpu.cells()
        rows.append([f"{vocab_size}, {name}", ours, theirs, ratio, span, wall.cells()[2]])
    return rows


if __name__ == "__main__":
    main()
