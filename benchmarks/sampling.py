"""Responses per second of sampling, against `generate` of Hugging Face transformers with the same weights.

    python benchmarks/sampling.py --hf_python=../venv_hf/bin/python

K samples of every prompt at temperature 1. Both sides decode as many prompts at a time, and transformers gets them sorted by length.
The random weights have a constant logit of EOS: it is never chosen (equal lengths), or with one probability at every position, so that
the lengths of responses are geometrically distributed, with the mean of `--mean_length`. `--before` is a checkout of an earlier version
of jaxalign, to compare with in the place of transformers.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    SMALLEST_MODEL,
    Clock,
    Comparison,
    Worker,
    alternate,
    peak_memory,
    print_table,
    serve,
)
from workloads import Examples, load, save

MODELS = {
    "tiny": SMALLEST_MODEL,
    "small": {
        "vocab_size": 32128,
        "emb_dim": 512,
        "num_heads": 8,
        "head_dim": 64,
        "mlp_dim": 1024,
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
    },
}
EOS = 1


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny"])
    parser.add_argument(
        "--lengths", nargs="+", choices=("equal", "varied"), default=["equal", "varied"]
    )
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=32, help="prompts decoded at a time")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument(
        "--length", type=int, default=64, help="tokens after which a response is cut"
    )
    parser.add_argument("--mean_length", type=float, default=24.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hf_python", default=sys.executable, help="has torch and transformers")
    parser.add_argument(
        "--before", help="a checkout of an earlier version, in place of transformers"
    )
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for kind in options.lengths:
            rows.append(measure(name, kind, options))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)  # a later one may take long
    other = "before" if options.before else "transformers"
    header = ("model, lengths", "responses/s", other, "ratio", "range", "CPU-time ratio")
    header += ("mean length", other, "peak MiB", other)
    title = (
        f"{options.prompts} prompts, {options.samples} samples of at most {options.length} tokens"
    )
    print_table(
        f"{title}, {options.batch_size} prompts at a time, {options.threads} threads", header, rows
    )


def measure(name: str, kind: str, options: argparse.Namespace) -> list[str]:
    """Measures one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        prompts, weights = Path(folder) / "prompts.npz", Path(folder) / "weights.npz"
        save(examples(options.prompts, MODELS[name]["vocab_size"]), prompts)
        hazard = 0.0 if kind == "equal" else 1.0 / options.mean_length
        arguments = {
            "model": MODELS[name],
            "examples_file": str(prompts),
            "weights_file": str(weights),
            "hazard": hazard,
            **{key: getattr(options, key) for key in ("batch_size", "samples", "length")},
        }
        # The first to start draws the weights; the parent has no JAX, which does not survive a fork.
        ours = Worker(__file__, {**arguments, "side": "jaxalign"}, options.threads)
        if options.before:
            theirs = Worker(
                __file__, {**arguments, "side": "jaxalign"}, options.threads, package=options.before
            )
        else:
            theirs = Worker(
                __file__, {**arguments, "side": "torch"}, options.threads, options.hf_python
            )
        pairs = alternate(options.pairs, lambda: ours.ask(), lambda: theirs.ask())
        ours.close()
        theirs.close()

    def rates(seconds: str) -> Comparison:
        a, b = (
            [pair[side]["responses"] / pair[side][seconds] for pair in pairs] for side in (0, 1)
        )
        return Comparison(a, b)

    last = pairs[-1]
    return [
        f"{name}, {kind}",
        *rates("wall").cells(),
        rates("cpu").cells()[2],
        *[f"{side['tokens'] / side['responses']:.1f}" for side in last],
        *[f"{side['memory']:.0f}" for side in last],
    ]


def examples(count: int, vocab_size: int) -> Examples:
    """Prompts with log-normal lengths, like those of dialogue acts."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(math.log(25), 0.4, count), 6, 64).astype(int)
    inputs = [
        np.append(rng.integers(3, vocab_size, length - 1), EOS).astype(np.int32)
        for length in lengths
    ]
    no_numbers = np.zeros(count, np.float32)
    return Examples(inputs, inputs, no_numbers, no_numbers)


def random_weights(model: dict[str, Any], hazard: float) -> dict[str, np.ndarray]:
    """Random weights, under transformers' names, that choose EOS with probability `hazard` at every position.

    The first feature of all states is constant: every embedding has it, and no layer writes it. The head gives EOS its logit from
    this feature alone, and other tokens small logits from the other features.
    """
    import jax

    from jaxalign.interop.huggingface import to_huggingface
    from jaxalign.networks.config import T5Config
    from jaxalign.networks.policy import Policy

    config = T5Config(**model)
    params = jax.tree.map(np.array, Policy(config).init(jax.random.key(0)))
    constant = 100.0 * math.sqrt(
        config.emb_dim
    )  # so large that the norm makes it the root of the width
    params["token_embedder"]["embedding"][:, 0] = constant
    for layer in (value for key, value in params["decoder"].items() if key.startswith("layers_")):
        for block, kernel in (
            ("self_attention", "out"),
            ("encoder_decoder_attention", "out"),
            ("mlp", "wo"),
        ):
            layer[block][kernel]["kernel"][:, 0] = 0.0
    head = params["decoder"]["logits_dense"]["kernel"]
    head *= 0.1
    head[0] = 0.0
    odds = hazard / (1.0 - hazard) * (config.vocab_size - 1)
    logit = math.log(odds) if hazard else -50.0
    head[:, EOS] = 0.0
    head[0, EOS] = logit / math.sqrt(config.emb_dim)
    return dict(to_huggingface(params, config))


def start(arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """See `common.serve`."""
    sample = (start_torch if arguments["side"] == "torch" else start_jaxalign)(arguments)
    sample(0)  # compiles
    runs = 0

    def answer() -> dict[str, Any]:
        nonlocal runs
        runs += 1
        with Clock() as clock:
            responses, tokens = sample(runs)
        return {
            "responses": responses,
            "tokens": tokens,
            "wall": clock.wall,
            "cpu": clock.cpu,
            "memory": peak_memory(),
        }

    return {}, answer


def start_jaxalign(arguments: dict[str, Any]) -> Callable[[int], tuple[int, int]]:
    """Returns a function that samples with a seed and returns the numbers of responses and of their tokens."""
    from jaxalign.inference.sampling import DecodingSettings, generate_tokens
    from jaxalign.interop.huggingface import from_huggingface
    from jaxalign.networks.config import T5Config
    from jaxalign.networks.policy import Policy

    config = T5Config(**arguments["model"])
    if not Path(arguments["weights_file"]).exists():
        np.savez(
            arguments["weights_file"], **random_weights(arguments["model"], arguments["hazard"])
        )
    with np.load(arguments["weights_file"], allow_pickle=False) as weights:
        params = from_huggingface(dict(weights), config)
    prompts = [prompt.tolist() for prompt in load(arguments["examples_file"]).inputs]
    settings = DecodingSettings(
        max_target_length=arguments["length"], num_samples=arguments["samples"], temperature=1.0
    )
    policy = Policy(config)

    def sample(seed: int) -> tuple[int, int]:
        tokens, _ = generate_tokens(
            policy, params, prompts, settings, batch_size=arguments["batch_size"], seed=seed
        )
        return len(tokens) * arguments["samples"], int((tokens > 0).sum())

    return sample


def start_torch(arguments: dict[str, Any]) -> Callable[[int], tuple[int, int]]:
    """The same for transformers."""
    import torch
    from torch_steps import hf_config, pad
    from transformers import T5ForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = T5ForConditionalGeneration(hf_config(arguments["model"])).eval()
    # transformers 5 ignores tie_word_embeddings=False for T5; T5 1.1 has a separate projection.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with np.load(arguments["weights_file"], allow_pickle=False) as weights:
        state = {name: torch.from_numpy(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("embed_tokens" in name for name in missing), (missing, unexpected)
    prompts = sorted(load(arguments["examples_file"]).inputs, key=len)
    size = arguments["batch_size"]

    def sample(seed: int) -> tuple[int, int]:
        torch.manual_seed(seed)
        responses = tokens = 0
        for begin in range(0, len(prompts), size):
            rows = pad(prompts[begin : begin + size], 0)
            with torch.inference_mode():
                found = model.generate(
                    input_ids=rows,
                    attention_mask=(rows > 0).long(),
                    max_new_tokens=arguments["length"],
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    num_return_sequences=arguments["samples"],
                    eos_token_id=EOS,
                    pad_token_id=0,
                    use_cache=True,
                )
            responses += len(found)
            tokens += int((found[:, 1:] > 0).sum())
        return responses, tokens

    return sample


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        serve(start)
    else:
        main()
