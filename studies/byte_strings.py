"""DRO in its second home: byte strings that are no language, read from CSV files, with sums or means of log-ratios over tokens.

    python -m studies.byte_strings --data . --workers 2
    python -m studies.byte_strings_report

DRO is used on proteins: a gap in a sequence is filled, and a property of the whole is measured. A generator stands for them here. A prompt
is two flanks of a string, a response fills the gap, the feedback is minus the absolute net charge of the whole, which is exact, and whose
best expected value at every KL is known (`byte_strings_generator`). A T5 of about a million parameters reads bytes. It is fine-tuned on
natural fillers; then every arm learns from the same two natural fillers for each of the logged prompts: DRO-V with sums over tokens, with
means over tokens, and with V = 0, DPO on the pairs that differ, and SFT on the strings that are nearly neutral. All arms have equal
updates and one learning rate; nothing is searched. Every checkpoint is a point of reward and KL, and arms are compared at equal KL.
`--data` is not read. The same command continues an interrupted study. Measured: 1.5 core-hours beside other
work.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import decode_tokens, predict_values
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.base import Objective
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.description import RewardStatistics
from jaxalign.runs.folder import Run
from studies.byte_strings_generator import draw_filler, draw_prompts, feedback, optimum
from studies.byte_strings_objective import TokenMeanDRO
from studies.command_line import MINI_T5, run_study
from studies.fitting import checkpoints, fit, kl_along, sampled


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      natural, logged, test: prompts with one natural filler each for SFT, with two rated ones each for the arms, and for the measures.
      sft_updates, updates: updates of SFT and of an arm.
      points: checkpoints of an arm that are measured.
    """

    natural: int = 8000
    logged: int = 3000
    test: int = 300
    sft_updates: int = 500
    updates: int = 300
    points: int = 4


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method: the name of its CSV file, the kind of its records, and its objective."""

    file: str
    kind: str
    objective: Callable[[], Objective]


SEEDS = (0, 1, 2)
LENGTHS = {"inputs": 32, "targets": 32}
ROWS, SFT_RATE, RATE = 32, 2e-3, 3e-4
CONFIG = dataclasses.replace(MINI_T5, vocab_size=384)
POLICY = Policy(CONFIG, logits_chunk_size=None)
# Strings with at most one net charge are good ones for SFT.
GOOD = -1.0


def _gin(name: str, **macros: Any) -> Callable[[], Objective]:
    return lambda: objective_from_gin([name], macros, policy=POLICY)


def _token_mean(temperature: float) -> Callable[[], Objective]:
    return lambda: TokenMeanDRO(policy=POLICY, value=ValueNetwork(CONFIG), temperature=temperature)


# A filler has 16 tokens on average, so tau 16 of a mean is as strong as tau 1 of a sum. Public code has .75 and 1 with means.
ARMS = {
    **{
        f"dro_v_tau{tau:g}": Arm(
            "triplets", "triplet", _gin("dro_v", TEMPERATURE=tau, RESCALE="none")
        )
        for tau in (0.3, 1.0)
    },
    **{
        f"token_mean_tau{tau:g}": Arm("triplets", "triplet", _token_mean(tau))
        for tau in (1.0, 4.8, 16.0)
    },
    "zero_value_tau0.3": Arm("triplets", "triplet", _gin("zero_value", TEMPERATURE=0.3)),
    "dpo": Arm("pairs", "pair", _gin("dpo", BETA=0.1)),
    "sft_on_good": Arm("good", "seq2seq", lambda: SFT(policy=POLICY)),
}


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: CSV files, and of every seed the fine-tuned policy and all arms."""
    del data
    made = [Job("data", functools.partial(_prepare, size))]
    for seed in SEEDS:
        sft = f"sft/seed{seed}"
        made.append(Job(sft, functools.partial(_sft, folder, size, seed), ("data",)))
        made += [
            Job(
                f"{name}/seed{seed}",
                functools.partial(_arm, folder, size, arm, seed),
                (sft,),
            )
            for name, arm in ARMS.items()
        ]
    return made


def _prepare(size: Size, job: Path) -> dict[str, Any]:
    """Writes the CSV files of all arms, and the prompts of the measures."""
    generator = np.random.default_rng(1)
    prompts = draw_prompts(size.natural + size.logged + size.test, generator)
    natural, rest = prompts[: size.natural], prompts[size.natural :]
    logged, test = rest[: size.logged], rest[size.logged :]
    rated = [
        [(each, feedback(prompt, each)) for each in (draw_filler(prompt, generator), draw_filler(prompt, generator))]
        for prompt in logged
    ]  # fmt: skip
    triplets = [
        (prompt, filler, reward)
        for prompt, group in zip(logged, rated, strict=True)
        for filler, reward in group
    ]
    ordered = [sorted(group, key=lambda each: -each[1]) for group in rated]
    tables: dict[str, tuple[Sequence[str], list[tuple[Any, ...]]]] = {
        "natural": (
            ("prompt", "response"),
            [(prompt, draw_filler(prompt, generator)) for prompt in natural],
        ),
        "triplets": (("prompt", "response", "feedback"), triplets),
        "pairs": (
            ("prompt", "chosen", "rejected"),
            [
                (prompt, better, worse)
                for prompt, ((better, high), (worse, low)) in zip(logged, ordered, strict=True)
                if high > low
            ],
        ),
        "good": (
            ("prompt", "response"),
            [(prompt, filler) for prompt, filler, reward in triplets if reward >= GOOD],
        ),
        "test": (("prompt",), [(prompt,) for prompt in test]),
    }
    for name, (header, rows) in tables.items():
        with (job / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return {
        **{name: len(rows) for name, (_, rows) in tables.items()},
        "feedback": float(np.mean([reward for _, _, reward in triplets])),
    }


def _data(folder: Path, name: str, kind: str, cache: Path) -> TaskData:
    return TaskData(
        task=f"byte_strings_{name}",
        cache_dir=str(cache),
        feature_lengths=LENGTHS,
        vocabulary="bytes",
        train_file=str(folder / f"data/{name}.csv"),
        kind=kind,
        duplicates="keep",
        eval_split="",
    )


def _sft(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    summary = fit(
        job / "run",
        SFT(policy=POLICY),
        _data(folder, "natural", "seq2seq", job / "cache"),
        rate=SFT_RATE,
        updates=size.sft_updates,
        seed=seed,
        rows=ROWS,
    )
    return {"loss": summary["train"]["loss"], **_measured(folder, job / "run", job / "run")}


def _arm(folder: Path, size: Size, arm: Arm, seed: int, job: Path) -> dict[str, Any]:
    reference = folder / f"sft/seed{seed}/run"
    objective = arm.objective()
    fit(
        job / "run",
        objective,
        _data(folder, arm.file, arm.kind, job / "cache"),
        rate=RATE,
        updates=size.updates,
        seed=seed,
        rows=ROWS // 2 if arm.kind == "pair" else ROWS,
        start=reference,
        points=size.points,
    )
    start = read_result(folder, f"sft/seed{seed}") or {}
    path = [{"updates": 0, **{key: start[key] for key in ("reward", "kl", "length")}}]
    for step, run in checkpoints(job / "run", size.updates, size.points).items():
        found = {"updates": step, **_measured(folder, run, reference)}
        # The optimum of means over tokens has another V.
        if isinstance(objective, DROV):
            found["value"] = _value(folder, run)
        path.append(found)
    return {"path": path}


def _prompts(folder: Path) -> list[str]:
    with (folder / "data/test.csv").open(encoding="utf-8", newline="") as file:
        return [row["prompt"] for row in csv.DictReader(file)]


def _measured(folder: Path, run: Path, reference: Path) -> dict[str, Any]:
    """Measures feedback, KL from the reference and length of one sample for each test prompt."""
    prompts = _prompts(folder)
    policy = Run(run).policy()
    encoded = [list(each) for each in encoder_of(policy).prompts(prompts).tokens]
    tokens = sampled(POLICY, policy.params, encoded, LENGTHS["targets"], seed=1)
    texts = [decode_tokens(policy.vocabulary, row) for row in tokens]
    rewards = [feedback(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    kl = kl_along(POLICY, policy.params, Run(reference).policy().params, encoded, tokens)
    return {
        "reward": float(np.mean(rewards)),
        "reward_error": float(np.std(rewards, ddof=1) / len(rewards) ** 0.5),
        "kl": float(kl.mean()),
        "length": float(np.mean([len(text) for text in texts])),
        "strings": texts[:5],
    }


def _value(folder: Path, run: Path) -> dict[str, float]:
    """Compares V with the exact V* on the test prompts, in units of feedback."""
    prompts = _prompts(folder)
    opened = Run(run)
    value = opened.value()
    encoded = encoder_of(opened.policy()).prompts(prompts).tokens
    fitted = predict_values(value.network, value.params, encoded, batch_size=100)
    statistics = opened.description.reward or RewardStatistics()
    exact = optimum(prompts, opened.temperature * statistics.std).values
    difference = fitted * statistics.std + statistics.mean - exact
    return {
        "correlation": float(np.corrcoef(fitted, exact)[0, 1]),
        "bias": float(difference.mean()),
        "error": float(np.sqrt(np.mean(difference**2))),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "byte_strings", jobs)


if __name__ == "__main__":
    main()
