"""A policy trained on a reward of features (arXiv 2402.15473): what does it gain, by the exact measure and beside a reward that reads text?

    python -m studies.feature_reward_policy --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2
    python -m studies.feature_reward_policy_report

`rnnlg`: a T5 of about a million parameters is fine-tuned on all sentences. The exact measure, the share of right slots, labels few pairs
of its samples, as people would. Two reward models learn from these pairs: phi, a linear map of seven features of the text that know
nothing of slots, and a T5, whose learning rate is chosen from two by as many pairs again. Each then judges other samples, and DRO-V and
A-LoL learn from them. A control learns from the exact measure. What a policy reads is the rank of a response among all training responses,
0 to 1, so that the rewards differ in order alone. A-LoL's V is fitted to the ranks of the logged responses. Nothing else is searched. The
same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.annotation import features
from jaxalign.annotation.judges import get_judge
from jaxalign.annotation.score import score
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import win_points
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.folder import Run
from jaxalign.selection.from_feedback import pairs_from_groups
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from studies import rnnlg_data, rounds_arms
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.feature_reward_models import fit_phi
from studies.fitting import fit
from studies.rnnlg_runs import ROWS, fit_advantages, goodness, greedy_texts, measured, task

FEATURES = ("words", "punctuation", "overlap", "coverage", "type_token_ratio", "repetition", "digits")  # fmt: skip
NETWORK = FeatureReward(len(FEATURES))
SEEDS = rounds_arms.SEEDS
REWARDS = ("exact", "phi", "t5")
OBJECTIVES = {"dro_v": ({"RESCALE": "none"}, "uniform"), "a_lol": ({}, "priority")}
# Pairs that train the rewards, choose T5's learning rate, and compare the rewards.
PARTS = ("pairs", "choosing_pairs", "held_out_pairs")
T5_RATES = (3e-4, 1e-3)
RATE, VALUE_RATE, PHI_RATE, L2 = 1e-4, 3e-3, 0.05, 1e-3


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      pairs: labelled pairs; as many others choose T5's learning rate, and as many again compare the reward models.
      acts, samples: acts whose samples are judged for training, and samples to each.
      reward_updates, value_updates, updates: of the T5 reward, of A-LoL's V, and of a policy.
      test: acts of the measures.
    """

    pairs: int = 100
    acts: int = 1500
    samples: int = 2
    reward_updates: int = 200
    value_updates: int = 200
    updates: int = 150
    test: int = 300


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: data and starts, and of every seed the samples, the rewards, and two policies for each reward."""
    made = [
        job
        for job in rounds_arms.study_jobs(data, folder, {})
        if job.name.startswith(("data", "sft/"))
    ]
    bound = functools.partial
    for seed in SEEDS:
        samples, rewards = f"samples/seed{seed}", f"rewards/seed{seed}"
        made += [
            Job(samples, bound(_samples, folder, size, seed), (f"sft/seed{seed}",)),
            Job(rewards, bound(_rewards, folder, size, seed), (samples,)),
        ]
        for reward in REWARDS:
            prepared = f"prepared/{reward}/seed{seed}"
            made.append(Job(prepared, bound(_prepare, folder, size, reward, seed), (rewards,)))
            made += [
                Job(
                    f"{objective}/{reward}/seed{seed}",
                    bound(_policy, folder, size, objective, reward, seed),
                    (prepared,),
                )
                for objective in OBJECTIVES
            ]
    return made


def ranks(
    scores: Float[np.ndarray, " items"], among: Float[np.ndarray, " others"]
) -> Float[np.ndarray, " items"]:
    """Returns the share of the others that score lower, ties counted half."""
    ordered = np.sort(among)
    lower, upper = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))  # type: ignore[call-overload]
    return (lower + upper) / (2 * len(ordered))


def _start(folder: Path, seed: int) -> Path:
    return folder / f"sft/seed{seed}/run"


def _samples(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Writes labelled pairs, other pairs that compare the rewards, and samples to other acts."""
    opened = Run(_start(folder, seed)).policy()
    acts = rnnlg_data.acts(folder / "data", "train")
    acts = [acts[i] for i in np.random.default_rng(seed).permutation(len(acts))]
    # About a third of all acts have two samples that differ in their slots.
    sets = {"labelled": acts[: 12 * size.pairs], "policy": acts[12 * size.pairs :][: size.acts]}
    counts: dict[str, Any] = {}
    for name, chosen in sets.items():
        settings = DecodingSettings(
            rounds_arms.LENGTHS["targets"], num_samples=size.samples, temperature=1.0
        )
        texts, _ = generate_responses(
            rounds_arms.POLICY, opened.params, encoder_of(opened), chosen, settings,
            batch_size=64, seed=seed,
        )  # fmt: skip
        records = [
            Record(act, (text,), (goodness(act, text),))
            for act, group in zip(chosen, texts, strict=True)
            for text in dict.fromkeys(group)
            if text.strip()
        ]
        if name == "labelled":
            pairs = pairs_from_groups(records)[: 3 * size.pairs]
            for place, part in enumerate(PARTS):
                write_jsonl(
                    pairs[place * size.pairs : (place + 1) * size.pairs],
                    str(job / f"{part}.jsonl"),
                    "pair",
                )
            counts["pairs"] = len(pairs)
        else:
            write_jsonl(records, str(job / "triplets.jsonl"), "triplet")
            counts["triplets"] = len(records)
    test = rnnlg_data.some_acts(folder / "data", "test", size.test)
    return {**counts, "start": measured(_start(folder, seed), _start(folder, seed), test)}


def _read_pairs(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def feature_scores(acts: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, "texts features"]:  # fmt: skip
    """Returns the seven features of every text."""
    return features.extract([features.get_extractor(name) for name in FEATURES], acts, texts)


def _pair_scores(pairs: Sequence[dict[str, str]]) -> Float[np.ndarray, "pairs two features"]:
    acts = [pair["prompt"] for pair in pairs]
    sides = [feature_scores(acts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")]  # fmt: skip
    return np.stack(sides, axis=1)


def _rewards(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Fits phi and the T5 reward to the labelled pairs; returns their accuracy on other pairs, and the weights of phi."""
    samples = folder / f"samples/seed{seed}"
    known, choosing, held_out = (_read_pairs(samples / f"{name}.jsonl") for name in PARTS)
    scores = _pair_scores(known)
    # Features of very different size: each is divided by its deviation over the labelled responses.
    deviations = np.maximum(scores.reshape(-1, len(FEATURES)).std(axis=0), 1e-6)
    ones = np.ones((1, len(known)), np.float32)
    params = fit_phi(NETWORK, (scores / deviations).astype(np.float32), ones, seed, l2=L2, rate=PHI_RATE)  # fmt: skip
    weights = np.asarray(params["head"]["layer_0"]["kernel"])[0, :, 0]
    np.save(job / "phi.npy", weights / deviations)
    rates = {}
    for rate in T5_RATES:
        run = job / f"t5_{rate:g}"
        train(
            model_dir=str(run),
            objective=objective_from_gin(["reward_model"], {}, policy=rounds_arms.POLICY),
            data=task("rnnlg_pairs", samples / "pairs.jsonl", "pair", folder / "data/spm.model", run / "cache"),
            optimizers={"reward": adamw(rate, warmup_steps=20, schedule="cosine", total_steps=size.reward_updates, clip_norm=1.0)},
            loop=constant_loop(size.reward_updates),
            batch_size=ROWS["pair"],
            random_seed=seed,
        )  # fmt: skip
        rates[rate] = _accuracy(choosing, get_judge(f"reward_model:{run}").score)
    best = max(rates, key=lambda rate: rates[rate])
    (job / "t5_rate.json").write_text(json.dumps(best))
    return {
        "held_out_pairs": len(held_out),
        "accuracy": {
            reward: _accuracy(held_out, functools.partial(reward_of, folder, reward, seed, job=job))
            for reward in ("phi", "t5")
        },
        "phi": dict(zip(FEATURES, weights.tolist(), strict=True)),
        "t5_rate": best,
    }


def _accuracy(pairs: Sequence[dict[str, str]], reward: Callable[..., Any]) -> float:
    acts = [pair["prompt"] for pair in pairs]
    better, worse = (
        np.asarray(reward(acts, [pair[side] for pair in pairs])) for side in ("chosen", "rejected")
    )
    return float(win_points(better, worse).mean())


def reward_of(
    folder: Path,
    reward: str,
    seed: int,
    acts: Sequence[str],
    texts: Sequence[str],
    *,
    job: Path | None = None,
) -> Float[np.ndarray, " texts"]:
    """Returns a reward of every text; ``job`` is the folder of the fitted rewards."""
    job = job or folder / f"rewards/seed{seed}"
    if reward == "exact":
        return np.array([goodness(act, text) for act, text in zip(acts, texts, strict=True)])
    if reward == "phi":
        return feature_scores(acts, texts) @ np.load(job / "phi.npy", allow_pickle=False)
    rate = json.loads((job / "t5_rate.json").read_text())
    return np.asarray(get_judge(f"reward_model:{job / f't5_{rate:g}'}").score(acts, texts))


def _logged(folder: Path, reward: str, seed: int, **options: Any) -> TaskData:
    prepared = folder / f"prepared/{reward}/seed{seed}"
    return task(
        f"rnnlg_{reward}", prepared / "triplets.jsonl", "triplet", folder / "data/spm.model",
        prepared / "cache", **options,
    )  # fmt: skip


def _prepare(folder: Path, size: Size, reward: str, seed: int, job: Path) -> dict[str, Any]:
    """Ranks the samples by a reward, stores scores of the start, and fits V and its advantages for A-LoL."""
    lines = (folder / f"samples/seed{seed}/triplets.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    acts, texts = ([row[key] for row in rows] for key in ("prompt", "response"))
    found = reward_of(folder, reward, seed, acts, texts)
    np.save(job / "scores.npy", found)
    ranked = ranks(found, found)
    records = [
        Record(act, (text,), (float(rank),))
        for act, text, rank in zip(acts, texts, ranked, strict=True)
    ]
    write_jsonl(records, str(job / "triplets.jsonl"), "triplet")
    logged = _logged(folder, reward, seed)
    logged.prepare()
    score(checkpoint=str(_start(folder, seed)), cache_dir=logged.cache_dir)
    kept = fit_advantages(
        job / "value", logged, logged, _start(folder, seed),
        name="logged", rate=VALUE_RATE, updates=size.value_updates, seed=seed,
    )  # fmt: skip
    exact = reward_of(folder, "exact", seed, acts, texts)
    return {"dropped": 1 - kept, "correlation": float(np.corrcoef(ranked, exact)[0, 1])}


def _policy(
    folder: Path, size: Size, objective: str, reward: str, seed: int, job: Path
) -> dict[str, Any]:
    """Trains a policy, and measures it exactly and by the reward that it learned from."""
    macros, sampling = OBJECTIVES[objective]
    stored = {"advantages": "logged"} if objective == "a_lol" else {}
    fit(
        job / "run",
        objective_from_gin([objective], macros, policy=rounds_arms.POLICY),
        _logged(folder, reward, seed, sampling=sampling, stored=stored),
        rate=RATE,
        updates=size.updates,
        seed=seed,
        rows=ROWS["triplet"],
        start=_start(folder, seed),
    )
    acts = rnnlg_data.some_acts(folder / "data", "test", size.test)
    among = np.load(folder / f"prepared/{reward}/seed{seed}/scores.npy", allow_pickle=False)
    own = {}
    for name, run in (("own_reward", job / "run"), ("own_reward_of_start", _start(folder, seed))):
        judged = reward_of(folder, reward, seed, acts, greedy_texts(run, acts))
        own[name] = float(ranks(judged, among).mean())
    samples = read_result(folder, f"samples/seed{seed}")
    assert samples is not None
    start = samples["start"]
    return {**measured(job / "run", _start(folder, seed), acts), **own, "start": start}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "feature_reward_policy", jobs)


if __name__ == "__main__":
    main()
