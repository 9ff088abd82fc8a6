"""Greedy decoding and beam search against `generate` of Hugging Face transformers, with the same weights.

    python benchmarks/decode.py --hf_python=../venv_hf/bin/python

Both decode as a program would: jaxalign by `generate_tokens`, which decodes two parts of the prompts at a time on two cores.
The random weights never choose EOS, so that all sides decode every prompt to the full length. The table shows the share of tokens on
which both sides agree. `--before` is a checkout of an earlier version of jaxalign, which is measured in the same turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import MODEL, Comparison, Worker, alternate, peak_memory, print_table, run_for, serve
from workloads import dense, load, save

HERE = Path(__file__).parent


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt_length", type=int, default=64)
    parser.add_argument("--length", type=int, default=64, help="tokens to decode")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hf_python", default=sys.executable, help="has torch and transformers")
    parser.add_argument("--before", help="a checkout of an earlier version, to compare with too")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.npz"
        save(dense(options.rows, options.prompt_length, MODEL["vocab_size"]), prompts)
        arguments = {
            "examples_file": str(prompts),
            "weights_file": str(Path(folder) / "weights.npz"),
            "length": options.length,
            "beams": options.beams,
        }
        # The first to start draws the weights.
        torch = Worker(__file__, {**arguments, "side": "torch"}, options.threads, options.hf_python)
        ours = Worker(__file__, {**arguments, "side": "jaxalign"}, options.threads)
        others = {"transformers": torch}
        if options.before:
            others["before"] = Worker(
                __file__, {**arguments, "side": "jaxalign"}, options.threads, package=options.before
            )
        for name, beams in (("greedy", 1), (f"{options.beams} beams", options.beams)):
            for other, theirs in others.items():
                rows.append(measure(f"{name}, {other}", beams, ours, theirs, options))
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
        for worker in (ours, *others.values()):
            worker.close()
    header = ("decoding, against", "responses/s", "theirs", "ratio", "range", "CPU-time ratio")
    header += ("equal tokens", "peak MiB", "theirs")
    title = (
        f"{options.rows} prompts of {options.prompt_length} tokens, {options.length} tokens decoded"
    )
    print_table(f"{title}, T5 with {MODEL}, float32, {options.threads} threads", header, rows)


def measure(
    name: str, beams: int, ours: Worker, theirs: Worker, options: argparse.Namespace
) -> list[str]:
    """Measures one row of the table."""
    found, expected = (
        np.asarray(worker.ask(beams=beams, seconds=0)["tokens"]) for worker in (ours, theirs)
    )
    equal = float(np.mean(found == expected))
    pairs = alternate(
        options.pairs,
        lambda: ours.ask(beams=beams, seconds=options.seconds),
        lambda: theirs.ask(beams=beams, seconds=options.seconds),
    )

    def rates(seconds: str) -> Comparison:
        a, b = (
            [options.rows * pair[side]["calls"] / pair[side][seconds] for pair in pairs]
            for side in (0, 1)
        )
        return Comparison(a, b)

    memory = [f"{pairs[-1][side]['memory']:.0f}" for side in (0, 1)]
    return [name, *rates("wall").cells(), rates("cpu").cells()[2], f"{equal:.1%}", *memory]


def start(arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """See `common.serve`."""
    decode = (start_torch if arguments["side"] == "torch" else start_jaxalign)(arguments)

    def answer(beams: int, seconds: float) -> dict[str, Any]:
        last = np.zeros(0)

        def one(_: int) -> None:
            nonlocal last
            last = decode(beams)

        result = run_for(seconds, one)
        return {**result, "memory": peak_memory(), "tokens": last.tolist() if not seconds else None}

    return {}, answer


def start_jaxalign(arguments: dict[str, Any]) -> Callable[[int], np.ndarray]:
    """Returns a function that decodes with a number of beams and returns the best response of each prompt."""
    from jaxalign.inference.sampling import DecodingSettings, generate_tokens
    from jaxalign.interop.huggingface import from_huggingface
    from jaxalign.networks.config import T5Config
    from jaxalign.networks.policy import Policy

    config = T5Config(**MODEL)
    with np.load(arguments["weights_file"], allow_pickle=False) as weights:
        params = from_huggingface(dict(weights), config)
    prompts, length = load(arguments["examples_file"]).inputs, arguments["length"]
    settings = {
        beams: DecodingSettings(length, num_beams=beams if beams > 1 else 0, alpha=1.0)
        for beams in (1, arguments["beams"])
    }

    def decode(beams: int) -> np.ndarray:
        tokens, _ = generate_tokens(Policy(config), params, prompts, settings[beams], batch_size=32)
        return tokens[:, 0]

    return decode


def start_torch(arguments: dict[str, Any]) -> Callable[[int], np.ndarray]:
    """The same for PyTorch; this side draws the weights and writes them."""
    import os

    import torch
    from torch_steps import hf_config
    from transformers import T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(hf_config(MODEL)).eval()
    head = model.lm_head.weight.detach().clone()
    head[:2] = 0.0  # logits of PAD and EOS far below the largest
    model.lm_head.weight = torch.nn.Parameter(head)
    np.savez(
        arguments["weights_file"],
        **{name: value.detach().numpy() for name, value in model.state_dict().items()},
    )
    prompts = torch.from_numpy(np.stack(load(arguments["examples_file"]).inputs)).long()
    length = arguments["length"]

    def decode(beams: int) -> np.ndarray:
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=length,
                num_beams=beams,
                do_sample=False,
                use_cache=True,
            )
        return tokens[:, 1:].numpy()

    return decode


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        serve(start)
    else:
        main()
