"""Distillation of the study `teacher_hacking`, and its distances of a student from the oracle and from the teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import EOS, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.networks.policy import Policy
from jaxalign.objectives.distillation import Distillation
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from studies.command_line import MINI_T5
from studies.repeated_steps import epoch_batches, make_step

LENGTHS = {"inputs": 96, "targets": 64}
HELD_OUT_SAMPLES = 2
EPOCHS, ROWS, LEARNING_RATE = 40, 30, 1e-3
MEASURED = (0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 24, 28, 32, 36, 40)
CONFIGS = {
    "oracle": dataclasses.replace(
        MINI_T5, emb_dim=256, head_dim=64, mlp_dim=512, num_encoder_layers=3, num_decoder_layers=3
    ),
    "teacher": MINI_T5,
    "student": dataclasses.replace(MINI_T5, emb_dim=80, head_dim=20, mlp_dim=160),
}
POLICIES = {name: Policy(config, logits_chunk_size=None) for name, config in CONFIGS.items()}


def splits(folder: Path) -> dict[str, list[str]]:
    """Returns the acts of the student, of the first stage, and held-out acts."""
    found: dict[str, list[str]] = json.loads((folder / "data/acts.json").read_text("utf-8"))
    return found


def sample(
    name: str, params: Any, prompts: Sequence[Sequence[int]], seed: int, samples: int = 1
) -> list[list[list[int]]]:
    """Returns samples at temperature 1 as token ids, [prompts][samples]; one without any token is an EOS."""
    settings = DecodingSettings(LENGTHS["targets"], num_samples=samples, temperature=1.0)
    tokens, _ = generate_tokens(POLICIES[name], params, prompts, settings, batch_size=64, seed=seed)
    return [[response_tokens(row) or [EOS] for row in group] for group in tokens]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out acts, each as often as it has samples, and fixed samples of the oracle and of the teacher; measures a student."""

    acts: list[str]
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


def held_out_measure(folder: Path, seed: int) -> tuple[HeldOut, Any, Any]:
    """Returns the measure, the student's parameters and the encoder of texts."""
    opened = {
        "oracle": Run(folder / "oracle/run").policy(),
        "teacher": Run(folder / f"teacher/seed{seed}/run").policy(),
        "student": Run(folder / f"student/seed{seed}/run").policy(),
    }
    encoder = encoder_of(opened["student"])
    acts = splits(folder)["held_out"]
    prompts = [list(each) for each in encoder.prompts(acts).tokens]
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
    repeated_acts = [act for act in acts for _ in range(HELD_OUT_SAMPLES)]
    return HeldOut(repeated_acts, params, repeated, samples), params["student"], encoder


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A distilled student with its measures: golden of every held-out sequence, proxy and the training loss by epoch."""

    params: Any
    held_out: HeldOut
    golden: list[np.ndarray]
    proxy: list[float]
    losses: list[float]
    steps: int


def distil(
    folder: Path,
    source: tuple[float, str, float],
    seed: int,
    *,
    epochs: int = EPOCHS,
    measured: Sequence[int] = MEASURED,
    **options: Any,
) -> Distilled:
    """Distils the student of a seed, and measures it.

    Args:
      folder: of the study, with finished ``starts``.
      source: the source of responses, as in `ARMS`.
      seed: the seed.
      epochs, measured: the number of epochs, and the epochs before which the student is measured.
      **options: of `Distillation`, such as ``divergence``.
    """
    share, fresh_from, fresh_share = source
    held_out, params, encoder = held_out_measure(folder, seed)
    acts = splits(folder)["student"]
    acts = acts[: round(share * len(acts))]
    repeats = round(1 / share)
    teacher = held_out.params["teacher"]
    prompts = [list(each) for each in encoder.prompts(acts).tokens]
    fixed = sample("teacher", teacher, prompts, seed, repeats)
    prompts = [prompt for prompt in prompts for _ in range(repeats)]
    responses = [row for group in fixed for row in group]
    objective = Distillation(
        policy=POLICIES["student"], teacher=POLICIES["teacher"], teacher_path="-", **options
    )

    def loss(params: Any, batch: Any, teacher: Any) -> Any:
        output = objective.loss({"policy": params, "teacher": teacher}, batch, None)
        return output.loss_sum / output.weight

    initial, step = make_step(loss, adamw(LEARNING_RATE, warmup_steps=20, clip_norm=1.0))
    state = initial(params)
    generator = np.random.default_rng(seed)
    golden, proxy, losses = [], [], []
    steps = 0
    for epoch in range(epochs + 1):
        if epoch in measured:
            golden.append(held_out.kl("oracle", "student", params))
            proxy.append(float(held_out.kl("teacher", "student", params).mean()))
        if epoch == epochs:
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
        groups = [[each] for each in current]
        for _, batch in epoch_batches(prompts, groups, size=ROWS, generator=generator):
            params, state, value = step(params, state, batch, teacher)
            values.append(float(value))
            steps += 1
        losses.append(float(np.mean(values)))
    return Distilled(params, held_out, golden, proxy, losses, steps)
