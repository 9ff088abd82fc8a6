"""Memory of `jaxalign convert`: the growth of the process as a multiple of the largest tensor and of the model.

    python benchmarks/convert.py [--megabytes=400]

Writes a random T5 1.1 in T5X's legacy format, array by array, converts it into each format, and converts a scanned run folder back, each
in its own process. The increase is the peak resident set minus the resident set after all imports (Linux). glibc keeps freed blocks of up
to 32 MiB for later use, more than a hundred MiB of them independently of the model's size. By default this script makes glibc return
blocks of 1 MiB and more, so that the measurement shows what the program holds; --allocator=default omits this.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_STACKED = "stacked"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="size of the model")
    parser.add_argument("--allocator", choices=("returning", "default"), default="returning")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    environment = dict(os.environ)
    if arguments.allocator == "returning":
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "checkpoint_0"
        first.mkdir()
        layers = write_model(first, arguments.megabytes)
        stacked = Path(folder) / _STACKED
        conversions = [
            (first, Path(folder) / to, to) for to in ("t5x", "t5x_orbax", "huggingface", "jaxalign")
        ]
        conversions += [
            (first, stacked, _STACKED),
            (Path(folder) / "huggingface", Path(folder) / "t5x_2", "t5x"),
            (stacked, Path(folder) / "unstacked", "huggingface"),
        ]
        for source, output, to in conversions:
            command = [sys.executable, __file__, "--one", str(source), str(output), to]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            result = json.loads(done.stdout.strip().splitlines()[-1])
            largest = result["largest"]
            if _STACKED in (source.name, to):
                largest = max(largest, result["largest_layer"] * layers)
            increase = result["increase"]
            print(
                f"{source.name} -> {to}: peak + {increase / 2**20:.0f} MiB; largest tensor {largest / 2**20:.0f} MiB, "
                f"model {result['size'] / 2**20:.0f} MiB; ratios {increase / largest:.2f} and {increase / result['size']:.2f}"
            )


def write_model(folder: Path, megabytes: int) -> int:
    """Writes a model of about this size; returns its layers per stack."""
    import numpy as np

    from jaxalign.interop import parameters, t5x
    from jaxalign.interop.arrays import LazyArray
    from jaxalign.networks.config import T5Config

    config = T5Config(
        vocab_size=8192,
        emb_dim=1024,
        num_heads=16,
        head_dim=64,
        mlp_dim=2816,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )

    def size(config: T5Config) -> int:
        return 4 * sum(math.prod(shape) for shape in parameters.shapes(config).values())

    base = size(config)
    per_layer = size(config.replace(num_encoder_layers=2, num_decoder_layers=2)) - base
    layers = max(1, 1 + (megabytes * 2**20 - base) // per_layer)
    config = config.replace(num_encoder_layers=layers, num_decoder_layers=layers)
    generator = np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> LazyArray:
        return LazyArray(
            shape, np.dtype("float32"), lambda _: generator.normal(size=shape).astype(np.float32)
        )

    arrays = {name: random(shape) for name, shape in parameters.shapes(config).items()}
    t5x.write_legacy(str(folder), arrays, 0)
    return layers


def measure(source: str, output: str, to: str) -> dict[str, int]:
    """Converts a checkpoint; returns in bytes the increase of memory, the largest tensor (of a layer and overall) and the model."""
    from jaxalign.interop.checkpoint_sources import open_source
    from jaxalign.interop.convert import convert

    opened = open_source(source)
    opened.configured(None)
    sizes = {name: array.nbytes for name, array in opened.params.items()}
    before = resident("VmRSS")
    # Resets the peak, which so far is that of the imports.
    Path("/proc/self/clear_refs").write_text("5")
    convert(
        checkpoint=source,
        output=output,
        to="jaxalign" if to == _STACKED else to,
        **({"scan_layers": True} if to == _STACKED else {}),
    )
    return {
        "increase": resident("VmHWM") - before,
        "largest": max(sizes.values()),
        "largest_layer": max(size for name, size in sizes.items() if "layers_" in name),
        "size": sum(sizes.values()),
    }


def resident(field: str) -> int:
    """Returns a size of this process from /proc, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
