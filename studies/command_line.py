"""Common parts of the commands of the studies."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxalign.networks.config import T5Config
from jaxalign.recipes.jobs import Job, run_workers

# About one million parameters with 1,024 pieces, as in gin_configs/models/mini.gin: it trains in minutes on two cores.
MINI_T5 = T5Config(
    vocab_size=1024,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
    dtype="float32",
)


def run_study(description: str, name: str, jobs: Callable[[Path, Path], Sequence[Job]]) -> None:
    """Parses ``--data``, ``--output``, ``--workers`` and ``--only``, and runs all unfinished jobs.

    Args:
      description: text of ``--help``.
      name: name of the default output folder.
      jobs: function from the data folder and the output folder to the study's jobs.
    """
    parser = _parser(description)
    parser.add_argument("--data", type=Path, required=True, help="folder with the JSON Lines files")
    parser.add_argument("--output", type=Path, default=Path("runs") / name)
    parser.add_argument(
        "--workers", type=int, default=2, help="number of processes, each on one core"
    )
    parser.add_argument(
        "--only",
        default="",
        help="run only jobs whose name starts with this, and the jobs that they need",
    )
    arguments = parser.parse_args()
    found = jobs(arguments.data, arguments.output)
    run_workers(found, arguments.output, arguments.workers, only=arguments.only)


def write_report(description: str, name: str, report: Callable[[Path], str]) -> None:
    """Parses ``--runs`` and ``--output``, and writes and prints the page.

    Args:
      description: text of ``--help``.
      name: name of the default run folder and of the page.
      report: function from the run folder to Markdown.
    """
    parser = _parser(description)
    parser.add_argument("--runs", type=Path, default=Path("runs") / name)
    parser.add_argument("--output", type=Path, default=Path("docs/results") / f"{name}.md")
    arguments = parser.parse_args()
    text = report(arguments.runs)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
