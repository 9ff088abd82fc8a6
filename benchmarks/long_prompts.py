"""Peak memory of a training step by length of the prompts, with attention over whole rows and in blocks, as the compiler counts it.

    python benchmarks/long_prompts.py
    python benchmarks/long_prompts.py --topology v5e:1x1 --dtype bfloat16      # needs libtpu

The step is DRO-V's on one device, with scanned layers. It is compiled and never run, so that no accelerator and no memory of the printed
size is needed. *Temporaries* are what the step needs besides parameters, optimizer state and batch.
"""

from __future__ import annotations

import argparse

from common import print_table
from gpu_step import MODELS


def peaks(options: argparse.Namespace, length: int, threshold: int) -> tuple[int, int]:
    """Returns the bytes of the peak, and those of temporaries, of a step with prompts of a length."""
    import jax

    from jaxalign.data.task_data import TaskData
    from jaxalign.networks.config import T5Config
    from jaxalign.networks.policy import Policy
    from jaxalign.networks.value import ValueNetwork
    from jaxalign.objectives.dro import DROV
    from jaxalign.parallel.partitioning import MeshShape
    from jaxalign.planning import compile_spec, topologies
    from jaxalign.training.optimizers import adafactor

    config = T5Config(
        **MODELS[options.model],
        dtype=options.dtype,
        scan_layers=True,
        remat_policy=options.remat,
        blockwise_attention_length=threshold,
    )
    objective = DROV(policy=Policy(config), value=ValueNetwork(config))
    lengths = {"inputs": length, "targets": options.targets}
    data = TaskData(task="random", cache_dir="", feature_lengths=lengths)
    spec = compile_spec.CompileSpec(
        objective=objective,
        optimizers={role: adafactor(1e-4) for role in objective.trained()},
        batch=compile_spec.batch_shapes(objective, data, options.rows, responses_per_prompt=1),
        microbatches=1,
        mesh=MeshShape(data=1),
        rules={},
    )
    devices = jax.devices("cpu")[:1]
    if options.topology:
        _, devices = topologies.describe(options.topology)
    result = compile_spec.compile_step(spec, devices, 2**60)
    held = result.parameter_bytes + result.optimizer_bytes + result.batch_bytes
    return result.peak_bytes, result.peak_bytes - held


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="t5_large", choices=MODELS)
    parser.add_argument("--lengths", default="512,2048,8192", help="tokens of the prompts")
    parser.add_argument("--targets", type=int, default=512, help="tokens of the responses")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="minimal", choices=("none", "minimal", "full"))
    parser.add_argument("--threshold", type=int, default=2048, help="blockwise_attention_length")
    parser.add_argument("--topology", help="of one chip, such as v5e:1x1; by default a CPU")
    options = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    rows = []
    for length in map(int, options.lengths.split(",")):
        whole = peaks(options, length, 0)
        blocks = whole if length < options.threshold else peaks(options, length, options.threshold)
        sizes = [f"{size / 2**30:.2f}" for pair in zip(whole, blocks, strict=True) for size in pair]
        rows.append([str(length), *sizes, f"{whole[1] / blocks[1]:.1f}"])
    header = ("tokens", "peak, whole", "in blocks", "temporaries, whole", "in blocks", "ratio")
    title = (
        f"{options.model} DRO-V, {options.rows} rows, {options.targets} target tokens, {options.dtype}, remat {options.remat}, "
        f"{options.topology or 'cpu'}, GiB"
    )
    print_table(title, header, rows)


if __name__ == "__main__":
    main()
