"""The training step on one accelerator: T5-L and T5-XL, SFT and DRO-V, at the largest batch that fits its memory.

    python benchmarks/gpu_step.py --json gpu.json
    python benchmarks/gpu_step.py --model tiny --device cpu --max_batch 16 --seconds 0.5      # a quick trial

Needs jax, flax and optax, and no data: token ids are random. The batch is found by doubling and then bisection. MFU is the model's
floating-point operations per second (three times the forward pass, without recomputation), relative to a matrix product measured in the
same run. The parts of a step are jitted separately; their sum can differ from the step. `--profile DIR` writes a trace for TensorBoard or
Perfetto.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table

_XL = {"emb_dim": 2048, "num_heads": 32, "head_dim": 64, "mlp_dim": 5120}
_LARGE = {"emb_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 2816}
_TINY = {"emb_dim": 64, "num_heads": 2, "head_dim": 32, "mlp_dim": 128}
_VOCABULARY = {"vocab_size": 32128}
MODELS: dict[str, dict[str, Any]] = {
    "t5_large": {**_VOCABULARY, **_LARGE, "num_encoder_layers": 24, "num_decoder_layers": 24},
    "t5_xl": {**_VOCABULARY, **_XL, "num_encoder_layers": 24, "num_decoder_layers": 24},
    "tiny": {"vocab_size": 512, **_TINY, "num_encoder_layers": 2, "num_decoder_layers": 2},
}
OBJECTIVES = ("sft", "dro_v")


def step_flops(config: Any, objective: str, rows: int, source: int, target: int) -> float:
    """Counts the operations of a training step: forward, and twice that backward, of the policy and for DRO-V of the value's encoder.

    Args:
      config: a `T5Config`.
      objective: 'sft' or 'dro_v'.
      rows: rows of the batch, including padding.
      source: encoder tokens of a row, including padding.
      target: decoder tokens of a row, including padding.
    """
    from jaxalign.planning import flops

    parts = flops.parts(config, rows, source, target)
    value = parts["encoder"] if objective == "dro_v" else 0.0
    return 3 * (sum(parts.values()) + value)


def largest_batch(fits: Callable[[int], bool], limit: int, start: int = 8) -> int:
    """Finds the largest batch up to `limit` that fits, to within an eighth; 0 if even one row does not fit."""
    good, bad, size = 0, limit + 1, min(start, limit)
    while size < bad:
        if fits(size):
            good, size = size, 2 * size
        else:
            bad = size
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


class Step:
    """The training step of `jaxalign train` for one model and objective on the first device."""

    def __init__(self, options: argparse.Namespace, model: str, objective: str):
        from jaxalign.networks.config import T5Config
        from jaxalign.networks.policy import Policy
        from jaxalign.networks.value import ValueNetwork
        from jaxalign.objectives.dro import DROV
        from jaxalign.objectives.sft import SFT
        from jaxalign.parallel import partitioning
        from jaxalign.training import optimizers, state, step

        self.options, self.name = options, objective
        self.config = T5Config(
            **MODELS[model], dtype=options.dtype, scan_layers=True, remat_policy=options.remat
        )
        self.policy = Policy(self.config, options.logits_chunk_size or None)
        self.value = ValueNetwork(self.config) if objective == "dro_v" else None
        self.objective: Any = (
            DROV(policy=self.policy, value=self.value)
            if self.value
            else SFT(policy=self.policy, z_loss=0.0)
        )
        self.transformations = state.build_transformations(
            {role: optimizers.adafactor(1e-4) for role in self.objective.trained()},
            self.objective.update_scales(),
        )
        self.mesh = partitioning.make_mesh(devices=_jax().devices()[:1])
        self._step = step.make_train_step(self.objective, self.transformations)
        self.state = self.new_state()
        self.gib: dict[int, float] = {}  # memory by number of rows, as XLA counts it

    def new_state(self) -> Any:
        from jaxalign.training import state

        jax = _jax()

        def create(key: Any) -> Any:
            params = {"policy": self.policy.init(key)}
            if self.value is not None:
                params["value"] = self.value.from_policy(key, params["policy"])
            return state.create_state(params, self.transformations)

        return jax.jit(create)(jax.random.key(0))

    def batch(self, rows: int) -> dict[str, Any]:
        """Makes a batch of random tokens on the device; lengths are uniform, and their mean is the share `--filled` of a row."""
        from jaxalign.data.batches import make_batch
        from jaxalign.data.examples import make_example
        from jaxalign.parallel import partitioning

        rng, lengths = np.random.default_rng(0), (self.options.inputs, self.options.targets)
        low = max(0.0, 2 * self.options.filled - 1)

        def tokens(length: int) -> np.ndarray:
            count = max(2, round(length * rng.uniform(low, 2 * self.options.filled - low)))
            return np.append(rng.integers(3, self.config.vocab_size, count - 1), 1)

        examples = [
            make_example(*(tokens(lengths[0]), [tokens(lengths[1])], [rng.normal()], None), prompt_id=i + 1)
            for i in range(rows)
        ]  # fmt: skip
        batch = make_batch(
            [[(i, example)] for i, example in enumerate(examples)],
            num_rows=rows,
            input_length=lengths[0],
            target_length=lengths[1],
            examples_per_row=1,
            responses_per_example=1,
            reference_log_probs=np.full((rows, 1), -3.0 * lengths[1], np.float32),
        )
        return partitioning.make_global_batch(self.mesh, batch)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one step object per measurement
    def compiled(self, rows: int) -> Callable[..., Any]:
        """Compiles the step for a number of rows.

        Raises:
          MemoryError: if it needs more than `--memory_gib`.
        """
        from jaxalign.parallel import partitioning
        from jaxalign.training import step

        batch = self.batch(rows)
        places = _jax().tree.map(lambda _: partitioning.replicated_sharding(self.mesh), self.state)
        jitted: Any = step.jit_train_step(self._step, self.mesh, places, {}, batch)
        program = jitted.lower(self.state, {}, batch).compile()
        sizes = program.memory_analysis()
        needed = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
        needed += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        self.gib[rows] = needed / 2**30
        if self.options.memory_gib and self.gib[rows] > self.options.memory_gib:
            raise MemoryError(f"{self.gib[rows]:.3f} GiB")
        return program

    def run(self, rows: int, steps: int, batch: dict[str, Any] | None = None) -> float:
        """Runs a number of steps on one batch, which the host queues without waiting; returns the seconds."""
        program, batch = self.compiled(rows), batch or self.batch(rows)
        started = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = program(self.state, {}, batch)
        _jax().block_until_ready((self.state, metrics))
        return time.perf_counter() - started

    def fits(self, rows: int) -> bool:
        """Whether a step with this number of rows compiles and runs in the available memory."""
        try:
            self.run(rows, 2)
        except MemoryError as error:
            _log(f"  {rows} rows: no ({error})")
            return False
        except _jax().errors.JaxRuntimeError as error:
            if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "ut of memory")):
                raise
            _log(f"  {rows} rows: no ({str(error).splitlines()[0][:100]})")
            if any(leaf.is_deleted() for leaf in _jax().tree.leaves(self.state)):
                self.state = None
                self.state = self.new_state()
            return False
        _log(f"  {rows} rows: yes ({self.gib[rows]:.3f} GiB by XLA's count)")
        return True

    def parts(self, rows: int) -> dict[str, float]:
        """Measures the seconds of the parts of a step, each jitted separately."""
        import optax

        jax, batch = _jax(), self.batch(rows)
        policy = self.state.params["policy"]

        def log_probs(params: Any, batch: Any) -> Any:
            return self.policy.score(params, batch).log_probs.sum()

        def time_of(function: Any, *arguments: Any) -> float:
            return _median_time(jax.jit(function), arguments, self.options.seconds / 4)

        found = {
            "policy_forward": time_of(log_probs, policy, batch),
            "policy_forward_backward": time_of(jax.grad(log_probs), policy, batch),
        }
        if self.value is not None:
            value = self.value
            found["value_forward_backward"] = time_of(
                jax.grad(lambda params, batch: value.values(params, batch).sum()),
                self.state.params["value"],
                batch,
            )

        def update(params: Any, slots: Any) -> Any:
            # Any tree with the shapes of the gradients serves as gradients.
            rules = self.transformations
            pairs = {
                role: rules[role].update(params[role], slots[role], params[role]) for role in rules
            }
            return {r: (optax.apply_updates(params[r], u), s) for r, (u, s) in pairs.items()}  # fmt: skip

        found["optimizer"] = time_of(update, self.state.params, self.state.opt_state)
        return found


def measure(options: argparse.Namespace, model: str, objective: str, peak: float) -> dict[str, Any]:
    """Measures one model and objective at the largest batch, or at `--batch`; {'error': ...} if no batch fits."""
    _log(f"{model} {objective}")
    step = Step(options, model, objective)
    rows = options.batch or largest_batch(step.fits, options.max_batch)
    result: dict[str, Any] = {"model": model, "objective": objective, "rows": rows}
    if not rows or (options.batch and not step.fits(rows)):
        return {**result, "error": "out of memory"}
    batch = step.batch(rows)
    count = max(2, int(options.seconds / max(step.run(rows, 2, batch) / 2, 1e-6)))
    seconds = float(np.median([step.run(rows, count, batch) / count for _ in range(3)]))
    flops = step_flops(step.config, objective, rows, options.inputs, options.targets)
    segments = [np.asarray(batch[f"{side}_segment_ids"]) for side in ("encoder", "decoder")]
    tokens = sum(int((ids > 0).sum()) for ids in segments)
    statistics = _jax().devices()[0].memory_stats() or {}
    result |= {
        "parameters": _size(step.state.params),
        "step_seconds": seconds,
        "sequences_per_second": rows / seconds,
        "non_padding_tokens_per_second": tokens / seconds,
        "model_flops_per_step": flops,
        "model_flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak,
        "xla_gib": step.gib[rows],
        "peak_memory_bytes": statistics.get("peak_bytes_in_use"),
    }
    if options.profile:
        with _jax().profiler.trace(str(options.profile / f"{model}_{objective}")):
            step.run(rows, 3, batch)
    try:
        result["parts_seconds"] = step.parts(rows)
    except _jax().errors.JaxRuntimeError as error:
        # A part may need memory for a result that the whole step updates in place.
        result["parts_error"] = str(error).splitlines()[0]
    return result


def matmul_flops(dtype: str, size: int, seconds: float) -> float:
    """Measures the floating-point operations per second of a chain of square matrix products, the reference of the MFU."""
    jax, products = _jax(), 16
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5

    @jax.jit
    def chain(x: Any, w: Any) -> Any:
        return jax.lax.fori_loop(0, products, lambda _, y: (y @ w).astype(dtype), x)

    return 2 * size**3 * products / _median_time(chain, (matrix, matrix), seconds)


def _median_time(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> float:
    jax = _jax()
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 1000):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _size(tree: Any) -> int:
    return int(sum(leaf.size for leaf in _jax().tree.leaves(tree)))


def _jax() -> Any:
    """Imports jax, only after the device has been chosen."""
    import jax

    return jax


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_results(report: dict[str, Any]) -> None:
    """Prints two Markdown tables: the steps and their parts."""
    about = "{device}, jax {jax}, {dtype}, {inputs}/{targets} tokens, remat {remat}".format(
        **report
    )
    product = report["matmul_flops_per_second"] / 1e12
    header = ("step", "rows", "ms", "sequences/s", "tokens/s", "model TFLOP/s", "MFU", "peak GiB")
    rows, parts = [], []
    for result in report["results"]:
        name = f"{result['model']} {result['objective']}"
        if "error" in result:
            rows.append([name, str(result["rows"]), result["error"], *[""] * 5])
            continue
        memory = result["peak_memory_bytes"]
        rows.append(
            [
                name,
                str(result["rows"]),
                f"{1e3 * result['step_seconds']:.1f}",
                f"{result['sequences_per_second']:.1f}",
                f"{result['non_padding_tokens_per_second']:.0f}",
                f"{result['model_flops_per_second'] / 1e12:.3g}",
                f"{result['mfu']:.1%}",
                f"{memory / 2**30:.1f}" if memory else "?",
            ]
        )
        found = result.get("parts_seconds", {})
        cells = [f"{1e3 * found[part]:.1f}" if part in found else "" for part in PARTS]
        parts.append([name, *cells, f"{1e3 * result['step_seconds']:.1f}"])
    print_table(f"Training steps on {about}; matrix product {product:.3g} TFLOP/s", header, rows)
    print_table("Parts of a step, ms", ("step", *PARTS, "whole step"), parts)


PARTS = ("policy_forward", "policy_forward_backward", "value_forward_backward", "optimizer")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the options and fills in those that depend on the device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="t5_large,t5_xl", help=f"one or more of {', '.join(MODELS)}"
    )
    parser.add_argument("--objective", default=",".join(OBJECTIVES), help="sft, dro_v or both")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu", "tpu"))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="bfloat16; on cpu float32")
    parser.add_argument("--inputs", type=int, default=512, help="encoder tokens of a row")
    parser.add_argument("--targets", type=int, default=256, help="decoder tokens of a row")
    parser.add_argument("--filled", type=float, default=1.0, help="mean share of a row in use")
    parser.add_argument(
        "--batch", type=int, default=0, help="rows; 0 searches for the largest number"
    )
    parser.add_argument("--max_batch", type=int, default=4096)
    parser.add_argument("--memory_gib", type=float, help="refuse more, by XLA's count; on cpu 2")
    parser.add_argument("--remat", default="minimal", choices=("none", "minimal", "full"))
    parser.add_argument(
        "--logits_chunk_size", type=int, default=512, help="tokens; 0 for no chunks"
    )
    parser.add_argument("--matmul_size", type=int, help="of the product for MFU; 8192, on cpu 1024")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--profile", type=Path, help="folder for traces of three steps")
    parser.add_argument("--json", type=Path, help="file for everything measured")
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    options.dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    options.matmul_size = options.matmul_size or (1024 if on_cpu else 8192)
    if options.memory_gib is None:
        options.memory_gib = (
            2.0 if on_cpu else 0.0
        )  # accelerators report exhausted memory themselves
    options.models, options.objectives = options.model.split(","), options.objective.split(",")
    for given, known in ((options.models, MODELS), (options.objectives, OBJECTIVES)):
        if set(given) - set(known):
            parser.error(
                f"unknown: {', '.join(sorted(set(given) - set(known)))}; choose from {', '.join(known)}"
            )
    if not 0 < options.filled <= 1:
        parser.error("--filled must be a share of a row, above 0 and at most 1")
    return options


def main() -> None:
    """Measures and prints."""
    options = parse()
    os.environ["JAX_PLATFORMS"] = "cuda" if options.device == "gpu" else options.device
    # JAX's default of 75 % would limit the search.
    if (
        "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ
    ):  # the older name; JAX refuses both together
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")
    jax = _jax()
    product = matmul_flops(options.dtype, options.matmul_size, options.seconds / 4)
    report: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "matmul_flops_per_second": product,
        **{
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
        "results": [],
    }
    for model in options.models:
        for objective in options.objectives:
            report["results"].append(measure(options, model, objective, product))
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_results(report)


if __name__ == "__main__":
    main()
