"""Several objectives on generated text: fronts of MODPO, weighted losses, weight soups and best-of-n over slots, brevity and likeness.

    python -m studies.modpo_text --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 2
    python -m studies.modpo_text_report --runs runs/rounds

Samples of a fine-tuned T5 of about a million parameters to dialogue acts of `rnnlg` are scored exactly: `slots` is minus the share of wrong
slots, `brevity` minus the number of tokens in tens, `likeness` the F1 of words with people's sentences. MODPO (arXiv 2310.03708) learns
from pairs labelled by slots, with margins for the other objectives: from a reward model (`scalar`) or from the implicit reward of a policy
trained by DPO on that objective (`implicit`). Both are in the units of preference logits and are not rescaled. The others: DPO with the
losses of all objectives weighted, the weighted mean of the parameters of the three DPO policies (soup), and the best of 8 samples of the
fine-tuned policy by the weighted rewards of reward models, each in units of its deviation.

Weightings cover the front of slots and brevity, and the middle of all three. All policies start from the same fine-tuned one and have equal
pairs, updates, beta and learning rate; nothing is searched. The fine-tuned policies are those of the studies of rounds, whose --output
folder is shared. The same command continues an interrupted study. Expected: .9 core-hours beside the fine-tuned policies (66 jobs of
35 to 60 seconds of one core, by a short run).
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.annotation.score import score
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import decode_tokens
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from studies import rnnlg, rnnlg_data, rounds_arms
from studies.command_line import run_study
from studies.equal_footing_forms import read_rows
from studies.fitting import fit, kl_along, sampled
from studies.modpo_text_margins import accuracy, implicit_rewards, model_rewards
from studies.modpo_text_scores import (
    OBJECTIVES,
    Scorer,
    best_of,
    mean_params,
    ordered_pairs,
    with_margins,
    write_rows,
)
from studies.rnnlg_runs import ROWS, task


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      acts: training acts, with one pair of samples each.
      updates: updates of every policy and reward model.
      test: acts of the measures.
      candidates: samples of best-of-n.
    """

    acts: int = 3000
    updates: int = 150
    test: int = 300
    candidates: int = 8


SEEDS = rounds_arms.SEEDS
BETA, RATE, REWARD_RATE = 0.1, 1e-4, 5e-4
# Weights of brevity, likeness, slots: the order of OBJECTIVES.
WEIGHTINGS: dict[str, tuple[float, float, float]] = {
    "slots .7, brevity .3": (0.3, 0.0, 0.7),
    "slots .5, brevity .5": (0.5, 0.0, 0.5),
    "slots .3, brevity .7": (0.7, 0.0, 0.3),
    "all three": (1 / 3, 1 / 3, 1 / 3),
}
METHODS = ("modpo_scalar", "modpo_implicit", "weighted_losses", "soup", "best_of_n")
_SLOTS = OBJECTIVES.index("slots")
# The pairs that a trained method reads.
_PAIRS = {"modpo_scalar": "scalar", "modpo_implicit": "implicit", "weighted_losses": "exact"}


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: fine-tuned policies of the studies of rounds, and of every seed pairs, single objectives, margins, fronts."""
    made = [
        job
        for job in rounds_arms.study_jobs(data, folder, {})
        if job.name.split("/")[0] in ("data", "sft")
    ]
    for seed in SEEDS:
        pairs, margins = f"modpo/pairs/seed{seed}", f"modpo/margins/seed{seed}"
        rewards = {each: f"modpo/reward_{each}/seed{seed}" for each in OBJECTIVES}
        ends = {each: f"modpo/dpo_{each}/seed{seed}" for each in OBJECTIVES}
        made.append(Job(pairs, functools.partial(_pairs, folder, size, seed), (f"sft/seed{seed}",)))
        for each in OBJECTIVES:
            made += [
                Job(rewards[each], functools.partial(_reward, folder, size, each, seed), (pairs,)),
                Job(ends[each], functools.partial(_end, folder, size, each, seed), (pairs,)),
            ]
        made.append(
            Job(
                margins,
                functools.partial(_margins, folder, seed),
                (*rewards.values(), *ends.values()),
            )
        )
        made += [
            Job(
                f"modpo/{method}/{place}/seed{seed}",
                functools.partial(_policy, folder, size, method, weighting, seed),
                (margins,),
            )
            for place, weighting in enumerate(WEIGHTINGS.values())
            for method in _PAIRS
        ]
        made += [
            Job(f"modpo/soup/seed{seed}", functools.partial(_soups, folder, size, seed), tuple(ends.values())),
            Job(f"modpo/best_of_n/seed{seed}", functools.partial(_best_of_n, folder, size, seed), tuple(rewards.values())),
        ]  # fmt: skip
    return made


def _sft(folder: Path, seed: int) -> Path:
    return folder / f"sft/seed{seed}/run"


def _pairs(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Writes two samples for each act with their exact scores, and the pairs of every reward model; caches the former."""
    acts = rnnlg_data.some_acts(folder / "data", "train", size.acts)
    policy, params, vocabulary = rnnlg.load_policy(_sft(folder, seed))
    tokens = rnnlg.generate_responses(policy, params, vocabulary, acts, samples=2, seed=seed)
    scorer = Scorer(folder / "data", "train")
    rows = []
    for act, group in zip(acts, tokens, strict=True):
        texts = [vocabulary.decode(each) for each in group]
        if all(map(str.strip, texts)) and texts[0] != texts[1]:
            scores = [scorer.scores(act, text, len(each)) for text, each in zip(texts, group, strict=True)]  # fmt: skip
            rows.append({"prompt": act, "responses": texts, "scores": scores})
    write_rows(job / "exact.jsonl", rows)
    for each in OBJECTIVES:
        write_rows(job / f"{each}.jsonl", ordered_pairs(rows, each))
    start = _measured(folder, _sft(folder, seed), seed, size)
    return {"pairs": len(rows), "start": start, **_cached(folder, job, "exact", seed)}


def _cached(folder: Path, job: Path, name: str, seed: int) -> dict[str, Any]:
    """Caches a file of pairs with reference scores, before several runs read it."""
    data = _data(folder, job, name)
    metadata = data.prepare()
    score(checkpoint=str(_sft(folder, seed)), cache_dir=data.cache_dir)
    return {f"{name}_examples": metadata.num_examples}


def _data(folder: Path, job: Path, name: str, kind: str = "multi") -> Any:
    file, cache = job / f"{name}.jsonl", job / f"cache_{name}"
    return task(f"rnnlg_{name}", file, kind, folder / "data/spm.model", cache)


def _reward(folder: Path, size: Size, name: str, seed: int, job: Path) -> dict[str, Any]:
    """Fits a reward model to the pairs of one objective."""
    pairs = folder / f"modpo/pairs/seed{seed}/{name}.jsonl"
    summary = fit(
        job / "run",
        objective_from_gin(["reward_model"], {}, policy=rounds_arms.POLICY),
        task(f"rnnlg_{name}", pairs, "pair", folder / "data/spm.model", job / "cache"),
        rate=REWARD_RATE,
        updates=size.updates,
        seed=seed,
        rows=ROWS["pair"],
        start=_sft(folder, seed),
    )
    return _cost(job / "run", "reward", summary)


def _train(
    folder: Path, size: Size, gin: str, macros: dict[str, Any], data: Any, seed: int, job: Path
) -> dict[str, Any]:
    summary = fit(
        job / "run",
        objective_from_gin([gin], {"BETA": BETA, **macros}, policy=rounds_arms.POLICY),
        data,
        rate=RATE,
        updates=size.updates,
        seed=seed,
        rows=ROWS["multi"],
        start=_sft(folder, seed),
    )
    return {**_cost(job / "run", "policy", summary), **_measured(folder, job / "run", seed, size)}


def _cost(run: Path, role: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Returns updates, and 6 operations for each parameter and token: two forward and four backward."""
    shapes = jax.tree.leaves(Run(run).network(role).abstract_params())
    parameters = sum(int(np.prod(each.shape)) for each in shapes)
    return {"updates": summary["step"], "flops": 6 * parameters * summary["tokens"]}


def _end(folder: Path, size: Size, name: str, seed: int, job: Path) -> dict[str, Any]:
    """Trains DPO on the labels of one objective: an end of the front, and an implicit reward."""
    weights = tuple(float(each == name) for each in OBJECTIVES)
    data = _data(folder, folder / f"modpo/pairs/seed{seed}", "exact")
    return _train(folder, size, "dpo_loss_weighting", {"WEIGHTS": weights}, data, seed, job)


def _margins(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes the pairs with margins from reward models and from implicit rewards in place of the scores that are not labels."""
    rows = read_rows(folder / f"modpo/pairs/seed{seed}/exact.jsonl")
    others = [each for each in OBJECTIVES if each != "slots"]
    scalar = {
        each: model_rewards(folder / f"modpo/reward_{each}/seed{seed}/run", rows) for each in others
    }
    implicit = {
        each: implicit_rewards(
            folder / f"modpo/dpo_{each}/seed{seed}/run", _sft(folder, seed), rows, BETA
        )
        for each in others
    }
    found: dict[str, Any] = {}
    for name, rewards in (("scalar", scalar), ("implicit", implicit)):
        write_rows(job / f"{name}.jsonl", with_margins(rows, rewards))
        found |= _cached(folder, job, name, seed)
        found[name] = {
            each: {
                "deviation": float(np.diff(values, axis=1).std()),
                "accuracy": accuracy(rows, each, values),
            }
            for each, values in rewards.items()
        }
    return found


def _policy(folder: Path, size: Size, method: str, weighting: tuple[float, ...], seed: int, job: Path) -> dict[str, Any]:  # fmt: skip
    """Trains one policy of a front."""
    pairs = _PAIRS[method]
    where = "pairs" if pairs == "exact" else "margins"
    data = _data(folder, folder / f"modpo/{where}/seed{seed}", pairs)
    macros: dict[str, Any] = {"WEIGHTS": weighting}
    if pairs == "exact":
        return _train(folder, size, "dpo_loss_weighting", macros, data, seed, job)
    macros["LABEL_OBJECTIVE"] = _SLOTS
    return _train(folder, size, "modpo_scores", macros, data, seed, job)


def _measured(folder: Path, run: Path, seed: int, size: Size, params: Any = None) -> dict[str, Any]:
    """Measures the exact objectives of one sample to each test act, and the KL from the fine-tuned policy."""
    acts = rnnlg_data.some_acts(folder / "data", "test", size.test)
    opened, start = Run(run).policy(), Run(_sft(folder, seed)).policy()
    params = opened.params if params is None else params
    prompts = [list(each) for each in encoder_of(start).prompts(acts).tokens]
    rows = sampled(rounds_arms.POLICY, params, prompts, rounds_arms.LENGTHS["targets"], 1)
    texts = [decode_tokens(start.vocabulary, row) for row in rows]
    kl = kl_along(rounds_arms.POLICY, params, start.params, prompts, rows)
    lengths = [len(row) for row in rows]
    scores = Scorer(folder / "data", "test").means(acts, texts, lengths)
    return {"scores": scores, "kl": float(kl.mean()), "samples": texts[:5]}


def _soups(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Measures the weighted means of the parameters of the DPO policies."""
    del job
    runs = [folder / f"modpo/dpo_{each}/seed{seed}/run" for each in OBJECTIVES]
    params = [Run(run).policy().params for run in runs]
    return {
        "points": [
            _measured(folder, runs[0], seed, size, mean_params(params, weighting))
            for weighting in WEIGHTINGS.values()
        ]
    }


def _best_of_n(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Measures the samples that the weighted rewards of the reward models choose."""
    del job
    acts = rnnlg_data.some_acts(folder / "data", "test", size.test)
    policy, params, vocabulary = rnnlg.load_policy(_sft(folder, seed))
    tokens = rnnlg.generate_responses(policy, params, vocabulary, acts, samples=size.candidates, seed=1)  # fmt: skip
    texts = [[vocabulary.decode(each) for each in group] for group in tokens]
    rows = [{"prompt": act, "responses": group} for act, group in zip(acts, texts, strict=True)]
    rewards = np.stack(
        [model_rewards(folder / f"modpo/reward_{each}/seed{seed}/run", rows) for each in OBJECTIVES]
    )
    scorer = Scorer(folder / "data", "test")
    points = []
    for weighting in WEIGHTINGS.values():
        chosen = best_of(rewards, weighting)
        picked = [(group[i], len(row[i])) for group, row, i in zip(texts, tokens, chosen, strict=True)]  # fmt: skip
        scores = scorer.means(acts, [text for text, _ in picked], [count for _, count in picked])
        # The KL of best-of-n is at most log n - (n - 1) / n.
        bound = float(np.log(size.candidates) - 1 + 1 / size.candidates)
        points.append({"scores": scores, "kl": bound})
    return {"points": points}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
