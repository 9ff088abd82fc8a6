"""What the studies of rounds share: RNNLG acts with the exact slot judge, starts of three seeds, and arms that are recipes of rounds."""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_measures import Measure
from jaxalign.recipes.round_prompts import PromptSource
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.recipes.rounds import rounds
from jaxalign.runs.folder import Run
from jaxalign.selection.from_feedback import pairs_from_groups
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import Optimizer, adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg_data
from studies.command_line import MINI_T5

SEEDS = (0, 1, 2)
LENGTHS = {"inputs": 96, "targets": 64}
VOCAB_SIZE = 1000
SFT_STEPS = 600
LEARNING_RATE = 1e-4
LABELLED_ACTS, TEST_ACTS = 150, 200
SAMPLES_PER_ACT = 4
POLICY = Policy(MINI_T5, logits_chunk_size=None)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm of a study: a recipe of rounds.

    Attributes:
      objective: the gin file of the objective.
      macros: its hyperparameters.
      per_round: hyperparameters with a value for each round.
      annotators: name -> annotator; {judge} stands for the exact judge.
      selector: the selector.
      sampler: who answers and how.
      acts: the acts of a round.
      rounds: the number of rounds.
      reference: the reference of training.
      epochs: passes over a round's records.
      start: the kind of start, see `study_jobs`.
      first: whether round 1 goes on from the policy that was trained on the labelled pairs.
      logged: whether the acts come with the labelled samples of the start as logged pairs.
    """

    objective: str
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    per_round: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    annotators: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"judge": "{judge}"})
    selector: str = "best_worst:annotation=judge"
    sampler: Sampler = dataclasses.field(default_factory=lambda: Sampler(num_samples=2))
    acts: int = 200
    rounds: int = 3
    reference: str = "previous"
    epochs: float = 3.0
    start: str = "sft"
    first: bool = False
    logged: bool = False


def random_scores(prompts: Sequence[str], responses: Sequence[str], references: Any) -> list[float]:
    """A judge whose labels mean nothing: a hash of prompt and response."""
    del references
    return [
        zlib.crc32(f"{prompt}\n{response}".encode()) / 2**32
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def study_jobs(source: Path, folder: Path, arms: Mapping[str, Arm]) -> list[Job]:
    """Returns all jobs of a study, seed after seed: the starts, then every arm.

    ``sft`` is the fine-tuned policy and ``labelled`` its judged samples. ``first`` is DPO on the labelled pairs of 150 acts, and ``bad`` is
    DPO on the same pairs the wrong way round.
    """
    made = [Job("data", functools.partial(_prepare, source))]
    for seed in SEEDS:
        sft, labelled = f"sft/seed{seed}", f"labelled/seed{seed}"
        first, bad = f"first/seed{seed}", f"bad/seed{seed}"
        made += [
            Job(sft, functools.partial(_sft, folder, seed), ("data",)),
            Job(labelled, functools.partial(_label, folder, seed), (sft,)),
            Job(first, functools.partial(_pairs, folder, seed, ""), (labelled,)),
            Job(bad, functools.partial(_pairs, folder, seed, "reversed_"), (labelled,)),
        ]
        made += [
            Job(
                f"{name}/seed{seed}",
                functools.partial(_arm, folder, arm, seed),
                (f"{arm.start}/seed{seed}", first, labelled),
            )
            for name, arm in arms.items()
        ]
    return made


def training_of(arm: Arm) -> Callable[[Mapping[str, Any]], functools.partial[dict[str, Any]]]:
    """Returns a function from a round's hyperparameters to `train` with its arguments."""

    def training(values: Mapping[str, Any]) -> functools.partial[dict[str, Any]]:
        macros = {**arm.macros, **values}
        steps = macros.pop("TRAIN_STEPS", 100)
        objective = objective_from_gin([arm.objective], macros, policy=POLICY, train_steps=steps)
        return functools.partial(
            train,
            model_dir="",
            objective=objective,
            data=TaskData(task="", cache_dir="", feature_lengths=LENGTHS, duplicates="keep"),
            optimizers={"policy": _optimizer(LEARNING_RATE, steps)},
            loop=_loop(steps),
            batch_size=16,
        )

    return training


def _arm(folder: Path, arm: Arm, seed: int, job: Path) -> dict[str, Any]:
    judge = f"slot_error:{folder}/data/train.jsonl"
    prompts = folder / (f"labelled/seed{seed}/all_pairs.jsonl" if arm.logged else "data/acts.jsonl")
    content = rounds(
        output_dir=str(job / "rounds"),
        start=str(folder / f"{arm.start}/seed{seed}/run"),
        first=str(folder / f"first/seed{seed}/run") if arm.first else None,
        prompts=PromptSource(file=str(prompts), per_round=arm.acts, seed=seed),
        training=training_of(arm),
        annotators={name: spec.replace("{judge}", judge) for name, spec in arm.annotators.items()},
        selector=arm.selector,
        sampler=arm.sampler,
        num_rounds=arm.rounds,
        measure=Measure(
            file=str(folder / "data/test_acts.jsonl"), judge=judge, truth=judge, batch_size=64
        ),
        reference=arm.reference,
        per_round=arm.per_round,
        epochs=arm.epochs,
        seed=seed,
    )
    return {"rounds": content["rounds"]}


def _prepare(source: Path, job: Path) -> dict[str, Any]:
    counts = rnnlg_data.prepare(source, job, VOCAB_SIZE)
    for split, name, most in (("train", "acts", None), ("test", "test_acts", TEST_ACTS)):
        lines = [json.dumps({"prompt": act}) + "\n" for act in rnnlg_data.acts(job, split)[:most]]
        (job / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"acts": counts}


def _sft(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    data = TaskData(
        task="rnnlg",
        cache_dir=str(job / "cache"),
        feature_lengths=LENGTHS,
        vocabulary=str(folder / "data/spm.model"),
        train_file=str(folder / "data/train.jsonl"),
        validation_file=str(folder / "data/validation.jsonl"),
        kind="seq2seq",
        duplicates="keep",
        pack=True,
        row_lengths={"inputs": 160, "targets": 128},
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICY),
        data=data,
        optimizers={"policy": _optimizer(2e-3, SFT_STEPS)},
        loop=_loop(SFT_STEPS),
        batch_size=16,
        random_seed=seed,
    )
    return {"summary": summary}


def _label(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes oracle-labelled pairs of the start's samples: for 150 acts both ways round, and for all acts."""
    run = Run(folder / f"sft/seed{seed}/run").policy()
    acts = rnnlg_data.acts(folder / "data", "train")
    order = np.random.default_rng(seed).permutation(len(acts))
    # Twice as many acts as three rounds need, because some have no pair with a better response.
    acts = [acts[index] for index in order[:1600]]
    settings = DecodingSettings(LENGTHS["targets"], num_samples=SAMPLES_PER_ACT, temperature=1.0)
    texts, _ = generate_responses(
        run.network, run.params, encoder_of(run), acts, settings, batch_size=64, seed=seed
    )
    records = [
        Record(act, (text,), (rnnlg_data.feedback(act, text),))
        for act, group in zip(acts, texts, strict=True)
        for text in dict.fromkeys(group)
        if text.strip()
    ]
    pairs = pairs_from_groups(records)
    few = set(acts[:LABELLED_ACTS])
    chosen = [pair for pair in pairs if pair.prompt in few]
    turned = [
        dataclasses.replace(pair, responses=pair.responses[::-1], feedback=(1.0, 0.0))
        for pair in chosen
    ]
    write_jsonl(chosen, str(job / "pairs.jsonl"), "pair")
    write_jsonl(turned, str(job / "reversed_pairs.jsonl"), "pair")
    write_jsonl(pairs, str(job / "all_pairs.jsonl"), "pair")
    return {"labelled_pairs": len(chosen), "all_pairs": len(pairs)}


def _pairs(folder: Path, seed: int, which: str, job: Path) -> dict[str, Any]:
    """Trains DPO on the labelled pairs of 150 acts, from the fine-tuned policy."""
    steps = 60
    data = TaskData(
        task="pairs",
        cache_dir=str(job / "cache"),
        feature_lengths=LENGTHS,
        vocabulary=str(folder / "data/spm.model"),
        train_file=str(folder / f"labelled/seed{seed}/{which}pairs.jsonl"),
        kind="pair",
        duplicates="keep",
        eval_split="",
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(["dpo"], {"BETA": 0.1}, policy=POLICY, train_steps=steps),
        data=data,
        optimizers={"policy": _optimizer(LEARNING_RATE, steps)},
        loop=_loop(steps),
        batch_size=16,
        start_from=StartFrom(str(folder / f"sft/seed{seed}/run")),
        random_seed=seed,
    )
    return {"summary": summary}


def _optimizer(rate: float, steps: int) -> Optimizer:
    return adamw(
        rate, warmup_steps=steps // 10, schedule="cosine", total_steps=steps, clip_norm=1.0
    )


def _loop(steps: int) -> LoopConfig:
    return LoopConfig(
        steps,
        eval_period=0,
        checkpoint=CheckpointPolicy(period=500, keep_latest=1),
        progress=False,
    )
