"""Alignment of a small T5 on RNNLG dialogue acts with exact slot-error feedback: DRO and other methods, three seeds.

    python -m studies.rnnlg --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rnnlg --workers 2

Every job writes a ``result.json``; the same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.annotation.score import score_splits
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.task_data import TaskData
from jaxalign.data.tokenization import Limits
from jaxalign.evaluation.statistics import distinct_n, kl_estimate
from jaxalign.inference.rows import response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import SharedTrunkValue, ValueNetwork
from jaxalign.objectives.base import Objective
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.partitioning import make_mesh
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.folder import Run
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg_data
from studies.command_line import MINI_T5, run_study

SEEDS = (0, 1, 2)
VOCAB_SIZE = 1000
LENGTHS = {"inputs": 96, "targets": 64}
SAMPLES_PER_ACT = 4
SFT_STEPS, UPDATES = 1500, 300
LEARNING_RATES = (3e-5, 1e-4)
KTO_BETAS = (0.1, 1.0, 5.0)

CONFIG = MINI_T5
POLICY = Policy(CONFIG, logits_chunk_size=None)


@dataclasses.dataclass(frozen=True)
class Method:
    """An objective, the form and kind of its data, and its responses per example."""

    objective: Callable[[], Objective]
    data: str = "triplets"
    kind: str = "triplet"
    responses: int = 1

    @property
    def packing(self) -> dict[str, Any]:
        """Rows that together hold about 32 responses (the DRO paper's batch size), single or in pairs."""
        if self.responses == 2:
            lengths, rows = {"inputs": 128, "targets": 192}, 4
        else:
            lengths, rows = {"inputs": 160, "targets": 144}, 6
        return {"batch_size": rows, "row_lengths": lengths}


def _dro(**options: Any) -> Callable[[], Objective]:
    return lambda: DROV(policy=POLICY, **{"value": ValueNetwork(CONFIG), **options})


def _kto(labels: str, beta: float) -> Callable[[], Objective]:
    return lambda: KTO(policy=POLICY, labels=labels, beta=beta, desirable_threshold=-1e-6)


METHODS: dict[str, Method] = {
    "dro_v": Method(_dro()),
    "dro_p": Method(lambda: DROP(policy=POLICY)),
    "dpo": Method(
        lambda: Pairwise(policy=POLICY, loss_function=functools.partial(dpo_loss, beta=0.1)),
        "pairs",
        "pair",
        2,
    ),
    "filtered_sft": Method(lambda: SFT(policy=POLICY), "filtered", "seq2seq"),
    "best_of_4_sft": Method(lambda: SFT(policy=POLICY), "best", "seq2seq"),
    **{f"kto_paper_beta{beta:g}": Method(_kto("batch_mean", beta)) for beta in KTO_BETAS},
    **{f"kto_reference_beta{beta:g}": Method(_kto("feedback", beta)) for beta in KTO_BETAS},
}
ABLATIONS: dict[str, Method] = {
    "dro_v_tau0.1": Method(_dro(temperature=0.1)),
    "dro_v_tau5": Method(_dro(temperature=5.0)),
    "dro_v_double_single": Method(_dro(values_per_batch="single")),
    "dro_v_single_multi": Method(_dro(value=SharedTrunkValue(POLICY))),
    "dro_v_single_single": Method(_dro(value=SharedTrunkValue(POLICY), values_per_batch="single")),
}
FAMILIES = ("dro_v", "dro_p", "kto_paper", "kto_reference", "dpo", "filtered_sft", "best_of_4_sft")


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study, in an order that finishes the search first."""
    made = [Job("data", functools.partial(_prepare, source))]
    for seed in SEEDS:
        made.append(Job(f"sft/seed{seed}", functools.partial(_sft, folder, seed), ("data",)))
        made.append(
            Job(
                f"samples/seed{seed}",
                functools.partial(_sample, folder, seed),
                (f"sft/seed{seed}",),
            )
        )
        made += [
            Job(
                f"scores/{data}/seed{seed}",
                functools.partial(_score, folder, data, seed),
                (f"samples/seed{seed}",),
            )
            for data in ("triplets", "pairs")
        ]
    search = [
        Job(
            f"search/{name}/lr{rate:g}",
            functools.partial(_align, folder, name, 0, rate, "validation"),
            _scores(0),
        )
        for rate in LEARNING_RATES
        for name in METHODS
    ]
    made += search
    for seed in SEEDS:
        needs = (*_scores(seed), *(job.name for job in search))
        made += [
            Job(
                f"final/{family}/seed{seed}", functools.partial(_final, folder, family, seed), needs
            )
            for family in (*FAMILIES, *ABLATIONS)
        ]
    return made


def _scores(seed: int) -> tuple[str, ...]:
    return f"scores/triplets/seed{seed}", f"scores/pairs/seed{seed}"


def _prepare(source: Path, job: Path) -> dict[str, Any]:
    return {"acts": rnnlg_data.prepare(source, job, VOCAB_SIZE)}


def _task(
    folder: Path, name: str, train_file: Path, validation_file: Path, cache: Path, **options: Any
) -> TaskData:
    return TaskData(
        task=name,
        cache_dir=str(cache),
        feature_lengths=LENGTHS,
        vocabulary=str(folder / "data" / "spm.model"),
        train_file=str(train_file),
        validation_file=str(validation_file),
        duplicates="keep",
        **options,
    )


def _loop(steps: int) -> LoopConfig:
    return LoopConfig(
        train_steps=steps,
        log_period=50,
        eval_period=0,
        checkpoint=CheckpointPolicy(period=500, keep_latest=1),
        progress=False,
    )


def _sft(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    data = _task(
        folder,
        "rnnlg",
        folder / "data" / "train.jsonl",
        folder / "data" / "validation.jsonl",
        job / "cache",
        kind="seq2seq",
        pack=True,
        max_examples_per_row=8,
        row_lengths={"inputs": 160, "targets": 128},
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICY),
        data=data,
        optimizers={
            "policy": adamw(
                2e-3, warmup_steps=200, schedule="cosine", total_steps=SFT_STEPS, clip_norm=1.0
            )
        },
        loop=_loop(SFT_STEPS),
        batch_size=16,
        random_seed=seed,
    )
    return {"summary": summary, **_judge_policy(folder, job / "run", job / "run", "test")}


def _sample(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    policy, params, vocabulary = load_policy(folder / f"sft/seed{seed}" / "run")
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        prompts = rnnlg_data.acts(folder / "data", split)
        tokens = generate_responses(
            policy, params, vocabulary, prompts, samples=SAMPLES_PER_ACT, seed=seed
        )
        responses = [[vocabulary.decode(sample) for sample in samples] for samples in tokens]
        counts[split] = rnnlg_data.write_feedback(job, split, prompts, responses)
    return counts


def _feedback_task(folder: Path, seed: int, data: str, kind: str) -> TaskData:
    """Returns the data of a seed's annotated samples in one form."""
    samples = folder / f"samples/seed{seed}"
    return _task(
        folder,
        f"rnnlg_{data}",
        samples / f"{data}.train.jsonl",
        samples / f"{data}.validation.jsonl",
        samples / f"cache_{data}",
        kind=kind,
        eval_split="",
    )


def _score(folder: Path, data: str, seed: int, job: Path) -> dict[str, Any]:
    task = _feedback_task(folder, seed, data, "pair" if data == "pairs" else "triplet")
    metadata = task.prepare()
    sft = Run(folder / f"sft/seed{seed}" / "run").policy()
    score_splits(
        sft.network,
        sft.params,
        task.cache(),
        "sft",
        PassSettings(
            splits=("train",),
            feature_lengths=LENGTHS,
            batch_size=32,
            mesh=make_mesh(),
            info={"run": sft.run.description.run_id, "step": sft.step},
        ),
    )
    return {"examples": metadata.num_examples}


def _align(
    folder: Path, name: str, seed: int, learning_rate: float, split: str, job: Path
) -> dict[str, Any]:
    method = {**METHODS, **ABLATIONS}[name]
    sft = folder / f"sft/seed{seed}" / "run"
    data = dataclasses.replace(
        _feedback_task(folder, seed, method.data, method.kind),
        pack=True,
        row_lengths=method.packing["row_lengths"],
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=method.objective(),
        data=data,
        optimizers={
            "policy": adamw(
                learning_rate,
                warmup_steps=20,
                schedule="cosine",
                total_steps=UPDATES,
                clip_norm=1.0,
            )
        },
        loop=_loop(UPDATES),
        batch_size=method.packing["batch_size"],
        start_from=StartFrom(str(sft)),
        reference_scores="sft",
        random_seed=seed,
    )
    return {
        "method": name,
        "learning_rate": learning_rate,
        "train": summary["train"],
        "responses": summary["examples"],
        **_judge_policy(folder, job / "run", sft, split),
    }


def selected(folder: Path, family: str) -> tuple[str, float]:
    """Returns a family's method and learning rate with the best mean reward on the validation acts; ablations use DRO-V's rate."""
    if family in ABLATIONS:
        return family, selected(folder, "dro_v")[1]
    candidates = [
        (result["reward"], name, rate)
        for name in METHODS
        if name == family or name.startswith(f"{family}_beta")
        for rate in LEARNING_RATES
        if (result := read_result(folder, f"search/{name}/lr{rate:g}")) is not None
    ]
    _, name, rate = max(candidates)
    return name, rate


def _final(folder: Path, family: str, seed: int, job: Path) -> dict[str, Any]:
    name, rate = selected(folder, family)
    return _align(folder, name, seed, rate, "test", job)


def load_policy(run: Path) -> tuple[Any, Any, Any]:
    """Returns the policy network of a run without chunked logits, its parameters and its vocabulary."""
    opened = Run(run).policy()
    return Policy(opened.network.config, logits_chunk_size=None), opened.params, opened.vocabulary


def generate_responses(
    policy: Any,
    params: Any,
    vocabulary: Any,
    prompts: list[str],
    *,
    samples: int = 0,
    seed: int = 0,
) -> list[list[list[int]]]:
    """Generates token ids ``[prompts][samples]``: greedy responses, or samples at temperature 1."""
    settings = DecodingSettings(
        max_target_length=LENGTHS["targets"],
        num_samples=max(samples, 1),
        temperature=1.0 if samples else 0.0,
    )
    encoded = text_encoder(vocabulary).prompts(prompts).tokens
    tokens, _ = generate_tokens(policy, params, encoded, settings, batch_size=128, seed=seed)
    return [[response_tokens(sample) for sample in samples] for samples in tokens]


def text_encoder(vocabulary: Any) -> TextEncoder:
    """From the study's texts to tokens."""
    return TextEncoder(vocabulary, Limits(LENGTHS["inputs"], LENGTHS["targets"]))


def _judge_policy(folder: Path, run: Path, reference: Path, split: str) -> dict[str, Any]:
    """Measures rewards on a split's acts, and KL from the SFT policy.

    One sample at temperature 1 per act is judged, because KL-regularised reward is defined on this distribution, and because the greedy
    responses of the SFT policy have few errors.
    """
    prompts = rnnlg_data.acts(folder / "data", split)
    policy, params, vocabulary = load_policy(run)
    greedy = generate_responses(policy, params, vocabulary, prompts)
    sampled = generate_responses(policy, params, vocabulary, prompts, samples=1, seed=1)
    encoded = text_encoder(vocabulary).prompts(prompts).tokens
    start = load_policy(reference)[1]
    divergences = sequence_kl((policy, params), (policy, start), encoded, sampled, batch_size=128)
    texts = [vocabulary.decode(each[0]) for each in sampled]
    rewards = [rnnlg_data.feedback(act, text) for act, text in zip(prompts, texts, strict=True)]
    likeliest = [vocabulary.decode(each[0]) for each in greedy]
    best = [rnnlg_data.feedback(act, text) for act, text in zip(prompts, likeliest, strict=True)]
    return {
        "reward": float(np.mean(rewards)),
        "slot_error_rate": rnnlg_data.slot_error_rate(prompts, texts),
        "greedy_reward": float(np.mean(best)),
        "greedy_slot_error_rate": rnnlg_data.slot_error_rate(prompts, likeliest),
        "kl": kl_estimate(divergences).to_dict(),
        "length": float(np.mean([len(each[0]) for each in sampled])),
        "distinct_2": distinct_n(texts, 2),
        "rewards": [round(reward, 4) for reward in rewards],
        "responses": texts[:10],
        "greedy_responses": likeliest[:10],
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rnnlg", jobs)


if __name__ == "__main__":
    main()
