"""Teacher hacking: does a student that comes closer to its teacher depart from the oracle? Five sources of data, 40 epochs, three seeds.

    python -m studies.teacher_hacking --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/teacher_hacking --workers 2
    python -m studies.teacher_hacking_report --runs runs/teacher_hacking

The oracle (5 M parameters) is fitted to human sentences, and is the truth from then on. The teacher (1 M) and the student (.4 M) are fitted
to its samples, the student for few steps. Then the student is distilled with the forward KL on other acts, in equal numbers of steps: on
one fixed teacher response for each act, on fresh teacher samples, on fresh samples of its own, on fixed responses of which a tenth is
replaced by fresh samples of its own, and on a fifth of the acts with five fixed responses each. Fresh samples are drawn once an epoch.

Golden is KL(oracle || student), proxy is KL(teacher || student), in nats a sequence, exact at every position along fixed samples to
held-out acts. A student that imitates its teacher exactly has golden KL(oracle || teacher), so a run needs a teacher that is nearer to the
oracle than the student's start; the job ``starts`` fails otherwise. The same command continues an interrupted study; an arm of a seed that
was interrupted starts again. Expected: 4 core-hours (an estimate; the oracle about .6, a teacher .2, an arm of a seed .15).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import EOS, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_responses, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import Distillation
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from studies import rnnlg_data
from studies.command_line import MINI_T5, run_study
from studies.equal_footing import constant_loop
from studies.repeated_steps import epoch_batches, make_step
from studies.teacher_hacking_measures import check_starts, hacked, log_slope

SEEDS = (0, 1, 2)
LENGTHS = {"inputs": 96, "targets": 64}
VOCAB_SIZE = 1000
STUDENT_ACTS, HELD_OUT_ACTS, HELD_OUT_SAMPLES = 600, 200, 2
# Acts that the oracle answers for the teacher and the student, and its responses to each.
FIRST_STAGE_ACTS, ORACLE_SAMPLES = 4000, 2
EPOCHS, ROWS, LEARNING_RATE = 40, 30, 1e-3
MEASURED = (0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 24, 28, 32, 36, 40)
FEWER = 5
CONFIGS = {
    "oracle": dataclasses.replace(
        MINI_T5, emb_dim=256, head_dim=64, mlp_dim=512, num_encoder_layers=3, num_decoder_layers=3
    ),
    "teacher": MINI_T5,
    "student": dataclasses.replace(MINI_T5, emb_dim=80, head_dim=20, mlp_dim=160),
}
POLICIES = {name: Policy(config, logits_chunk_size=None) for name, config in CONFIGS.items()}
FIT_STEPS = {"oracle": 600, "teacher": 1000, "student": 150}
# Share of acts; whose responses are fresh; the share of them that is fresh.
ARMS: dict[str, tuple[float, str, float]] = {
    "offline": (1.0, "teacher", 0.0),
    "fresh_teacher": (1.0, "teacher", 1.0),
    "fresh_student": (1.0, "student", 1.0),
    "tenth_fresh": (1.0, "student", 0.1),
    "fewer_acts": (1.0 / FEWER, "teacher", 0.0),
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs, seed after seed."""
    made = [
        Job("data", functools.partial(_prepare, source)),
        Job("oracle", functools.partial(_fit, folder, "oracle", 0), ("data",)),
    ]
    for seed in SEEDS:
        texts, starts = f"oracle_samples/seed{seed}", f"starts/seed{seed}"
        fitted = tuple(f"{name}/seed{seed}" for name in ("teacher", "student"))
        made.append(Job(texts, functools.partial(_oracle_samples, folder, seed), ("oracle",)))
        made += [
            Job(name, functools.partial(_fit, folder, name.split("/")[0], seed), (texts,))
            for name in fitted
        ]
        made.append(Job(starts, functools.partial(_starts, folder, seed), fitted))
        made += [
            Job(f"{arm}/seed{seed}", functools.partial(_distil, folder, arm, seed), (starts,))
            for arm in ARMS
        ]
    return made


def _prepare(source: Path, job: Path) -> dict[str, Any]:
    counts = rnnlg_data.prepare(source, job, VOCAB_SIZE)
    acts = rnnlg_data.acts(job, "train")
    order = np.random.default_rng(0).permutation(len(acts))
    splits = {
        "student": [acts[i] for i in order[:STUDENT_ACTS]],
        "first_stage": [acts[i] for i in order[STUDENT_ACTS:][:FIRST_STAGE_ACTS]],
        "held_out": rnnlg_data.acts(job, "test")[:HELD_OUT_ACTS],
    }
    (job / "acts.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    return {"human": counts, **{name: len(found) for name, found in splits.items()}}


def _fit(folder: Path, name: str, seed: int, job: Path) -> dict[str, Any]:
    texts = folder / ("data/train.jsonl" if name == "oracle" else f"oracle_samples/seed{seed}/train.jsonl")  # fmt: skip
    steps = FIT_STEPS[name]
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICIES[name]),
        data=TaskData(
            task="rnnlg",
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS,
            vocabulary=str(folder / "data/spm.model"),
            train_file=str(texts),
            validation_file=str(folder / "data/validation.jsonl"),
            kind="seq2seq",
            duplicates="keep",
            pack=True,
            row_lengths={"inputs": 160, "targets": 128},
        ),
        optimizers={
            "policy": adamw(
                2e-3,
                warmup_steps=steps // 10,
                schedule="cosine",
                total_steps=steps,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(steps),
        batch_size=16,
        random_seed=seed,
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(POLICIES[name].abstract_params())]
    return {"summary": summary, "parameters": sum(sizes)}


def _splits(folder: Path) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = json.loads((folder / "data/acts.json").read_text("utf-8"))
    return splits


def _oracle_samples(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    opened = Run(folder / "oracle/run").policy()
    acts = _splits(folder)["first_stage"]
    settings = DecodingSettings(LENGTHS["targets"], num_samples=ORACLE_SAMPLES, temperature=1.0)
    texts, _ = generate_responses(
        POLICIES["oracle"], opened.params, encoder_of(opened), acts, settings, batch_size=64, seed=seed
    )  # fmt: skip
    records = [
        Record(act, (text,))
        for act, group in zip(acts, texts, strict=True)
        for text in group
        if text.strip()
    ]
    write_jsonl(records, str(job / "train.jsonl"), "seq2seq")
    return {"sentences": len(records)}


def sample(
    name: str, params: Any, prompts: Sequence[Sequence[int]], seed: int, samples: int = 1
) -> list[list[list[int]]]:
    """Returns samples at temperature 1 as token ids, [prompts][samples]; one without any token is an EOS."""
    settings = DecodingSettings(LENGTHS["targets"], num_samples=samples, temperature=1.0)
    tokens, _ = generate_tokens(POLICIES[name], params, prompts, settings, batch_size=64, seed=seed)
    return [[response_tokens(row) or [EOS] for row in group] for group in tokens]


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """Fixed samples of the oracle and of the teacher to the held-out acts; measures a student."""

    params: dict[str, Any]
    prompts: list[list[int]]
    samples: dict[str, list[list[int]]]

    def kl(self, role: str, name: str, params: Any) -> np.ndarray:
        """Returns the sequence KL from ``role`` (oracle or teacher) to a policy."""
        first = POLICIES[role], self.params[role]
        responses = [[each] for each in self.samples[role]]
        return sequence_kl(first, (POLICIES[name], params), self.prompts, responses, batch_size=64)[
            :, 0
        ]


def _held_out(folder: Path, seed: int) -> tuple[_HeldOut, Any, Any]:
    """Returns the measure, the student's parameters and the encoder of texts."""
    opened = {
        "oracle": Run(folder / "oracle/run").policy(),
        "teacher": Run(folder / f"teacher/seed{seed}/run").policy(),
        "student": Run(folder / f"student/seed{seed}/run").policy(),
    }
    encoder = encoder_of(opened["student"])
    prompts = [list(each) for each in encoder.prompts(_splits(folder)["held_out"]).tokens]
    params = {name: each.params for name, each in opened.items()}
    samples = {
        name: [
            row
            for group in sample(name, params[name], prompts, 1000 + seed, HELD_OUT_SAMPLES)
            for row in group
        ]
        for name in ("oracle", "teacher")
    }
    repeated = [prompt for prompt in prompts for _ in range(HELD_OUT_SAMPLES)]
    return _HeldOut(params, repeated, samples), params["student"], encoder


def _starts(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    del job
    held_out, student, _ = _held_out(folder, seed)
    teacher = float(held_out.kl("oracle", "teacher", held_out.params["teacher"]).mean())
    start = float(held_out.kl("oracle", "student", student).mean())
    check_starts(teacher, start)
    return {"oracle_to_teacher": teacher, "oracle_to_student": start}


def _distil(folder: Path, arm: str, seed: int, job: Path) -> dict[str, Any]:
    """Distils the student for `EPOCHS` epochs, and measures it."""
    del job
    share, fresh_from, fresh_share = ARMS[arm]
    held_out, params, encoder = _held_out(folder, seed)
    acts = _splits(folder)["student"]
    acts = acts[: round(share * len(acts))]
    repeats = round(1 / share)
    teacher = held_out.params["teacher"]
    prompts = [list(each) for each in encoder.prompts(acts).tokens]
    fixed = sample("teacher", teacher, prompts, seed, repeats)
    prompts = [prompt for prompt in prompts for _ in range(repeats)]
    responses = [row for group in fixed for row in group]
    objective = Distillation(policy=POLICIES["student"], teacher=POLICIES["teacher"], teacher_path="-")  # fmt: skip

    def loss(params: Any, batch: Any, teacher: Any) -> Any:
        output = objective.loss({"policy": params, "teacher": teacher}, batch, None)
        return output.loss_sum / output.weight

    initial, step = make_step(loss, adamw(LEARNING_RATE, warmup_steps=20, clip_norm=1.0))
    state = initial(params)
    generator = np.random.default_rng(seed)
    lengths = max(map(len, prompts)), LENGTHS["targets"]
    golden, proxy, losses = [], [], []
    steps = 0
    for epoch in range(EPOCHS + 1):
        if epoch in MEASURED:
            golden.append(held_out.kl("oracle", "student", params))
            proxy.append(float(held_out.kl("teacher", "student", params).mean()))
        if epoch == EPOCHS:
            break
        current = list(responses)
        replaced = generator.permutation(len(current))[: round(fresh_share * len(current))]
        if len(replaced):
            whose = teacher if fresh_from == "teacher" else params
            drawn = sample(
                fresh_from, whose, [prompts[i] for i in replaced], 7919 * seed + epoch + 1
            )
            for place, (row,) in zip(replaced, drawn, strict=True):
                current[place] = row
        values = []
        for _, batch in epoch_batches(
            prompts, current, rows=ROWS, lengths=lengths, generator=generator
        ):
            params, state, value = step(params, state, batch, teacher)
            values.append(float(value))
            steps += 1
        losses.append(float(np.mean(values)))
    epochs = [epoch for epoch in MEASURED if epoch <= EPOCHS]
    return {
        "epochs": epochs,
        "golden": [float(each.mean()) for each in golden],
        "proxy": proxy,
        "train_loss": losses,
        "steps": steps,
        "log_slope": log_slope(epochs[1:], proxy[1:]),
        **hacked(np.stack(golden), proxy),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "teacher_hacking", jobs)


if __name__ == "__main__":
    main()
