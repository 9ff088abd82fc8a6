"""The command `jaxalign demo`: the whole method on bundled data, as the commands that a user would type."""

from __future__ import annotations

import shlex
import sys
import time

from jaxalign.errors import UserError

_SEPARATOR = "=" * 100


def demo(output_dir: str = "runs/demo") -> None:
    """Trains an SFT policy and aligns it on bundled dialogue acts by DRO-V, and by DRO without a value, then compares the three.

    Needs no download. Every step prints the command that performs it. If the demo is started again, it continues where it stopped.

    Args:
      output_dir: the folder for data, runs and evaluation.
    """
    started = time.time()
    print(
        "Logged feedback: sentences that three writers of different care wrote for dialogue acts, each with minus the share of slots\n"
        "it got wrong. First SFT imitates the writers, errors included. Then DRO-V learns from the feedback: policy and value network\n"
        "together. The same without a value (V = 0) shows what the value network adds."
    )
    for title, command in _steps(output_dir):
        print(f"\n{_SEPARATOR}\n# {title}\n$ jaxalign {_shown(command)}\n", flush=True)
        _run(command)
    print(
        f"\nDone in {time.time() - started:.0f} s. Open {output_dir}/report.html in a browser: responses side by side, win rates, curves\n"
        f"Runs: {output_dir}/sft, dro_v and no_value (config.gin, metrics.jsonl, tensorboard, checkpoints, summary.json)"
    )


def _steps(output_dir: str) -> list[tuple[str, list[str]]]:
    vocabulary, cache = f"{output_dir}/vocabulary.model", f"{output_dir}/cache"
    shared = [f"--VOCABULARY={vocabulary}", f"--CACHE_DIR={cache}"]
    return [
        (
            "a vocabulary of 300 pieces",
            [
                "vocabulary",
                "--task_or_file=synthetic_triplets",
                f"--output={vocabulary}",
                "--vocab_size=300",
            ],
        ),
        (
            "SFT on all logged responses",
            [
                "train",
                "--gin_file=experiments/synthetic_sft.gin",
                f"--MODEL_DIR={output_dir}/sft",
                *shared,
            ],
        ),
        (
            "DRO-V on the feedback, from the SFT policy",
            [
                "train",
                "--gin_file=experiments/synthetic_dro_v.gin",
                f"--MODEL_DIR={output_dir}/dro_v",
                f"--INITIAL_CHECKPOINT_PATH={output_dir}/sft",
                *shared,
            ],
        ),
        (
            "DRO without a value, from the same SFT policy",
            [
                "train",
                "--gin_file=experiments/synthetic_dro_v.gin",
                "--gin_file=objectives/zero_value.gin",
                f"--MODEL_DIR={output_dir}/no_value",
                f"--INITIAL_CHECKPOINT_PATH={output_dir}/sft",
                *shared,
            ],
        ),
        (
            "the three policies on held-out dialogue acts",
            [
                "evaluate",
                f"--checkpoints=SFT={output_dir}/sft,DRO-V={output_dir}/dro_v,no-value={output_dir}/no_value",
                f"--prompts={cache}",
                f"--output_dir={output_dir}/evaluation",
                "--temperature=1.0",
                "--batch_size=64",
            ],
        ),
        (
            "one page with everything, to open in a browser or to send",
            ["report", f"--runs={output_dir}", f"--output={output_dir}/report.html"],
        ),
    ]


def _shown(command: list[str]) -> str:
    """Returns the command as one would type it, with one flag on each line."""
    parts = [shlex.quote(part) for part in command]
    return " \\\n    ".join([" ".join(parts[:2]), *parts[2:]])


def _run(command: list[str]) -> None:
    import gin

    from jaxalign.cli.main import main

    # Each command starts from an empty configuration, as in a separate process.
    gin.clear_config()
    sys.stdout.flush()
    if main(command) != 0:
        raise UserError(f"the demo stopped: jaxalign {command[0]} failed (see above)")
