"""Steering by a goal: Q-values of a goal state as decoding score against the reward head as score and plain decoding, on `rnnlg`.

    python -m studies.goal_steering --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2
    python -m studies.goal_steering_report

A T5 of a million parameters is fine-tuned on dialogue acts. Its own samples, compared by their exact number of wrong slots, train reward
models: Bradley-Terry alone, and with the matched contrastive loss. While the T5 decodes, a weighted score of the prefix is added to
its log-probabilities: the reward head of either model, or Q of the second. A weight is in nats per standard deviation of the score over
finished samples, so that one grid serves all scores. The weight is chosen by the slot errors on validation acts; the report has test acts.
The same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.prefixes import PrefixScores, score_prefixes
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import distinct_n
from jaxalign.inference.goals import goal_vector
from jaxalign.inference.rows import response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.steering import goal_score
from jaxalign.networks.decoding_hooks import Hooks
from jaxalign.networks.decoding_scores import reward_score
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg, rnnlg_data
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.equal_footing_forms import read_rows
from studies.goal_conditioned_measures import at_share, aurocs


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      sft_updates, reward_updates: updates of the policy and of a reward model.
      acts: training acts whose samples are compared.
      judged: acts that are judged, by split.
    """

    sft_updates: int = 600
    reward_updates: int = 600
    acts: int = 3000
    judged: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"validation": 200, "test": 400}
    )


SEEDS = (0, 1, 2)
# Contrast weight of every reward model.
REWARDS = {"alone": 0.0, "matched": 0.5}
# The reward model and what is read of its states, by score.
SCORES = {
    "reward head, alone": ("alone", "reward"),
    "reward head, matched": ("matched", "reward"),
    "Q, matched": ("matched", "q"),
}
WEIGHTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
CANDIDATES = 8
MODES = {
    "greedy": DecodingSettings(rnnlg.LENGTHS["targets"]),
    "samples": DecodingSettings(rnnlg.LENGTHS["targets"], temperature=1.0, top_k=CANDIDATES),
}
LEARNING_RATE = 5e-4


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: data, and of every seed a policy, its compared samples, reward models, and the judged responses."""
    made = [Job("data", functools.partial(_prepare, data))]
    for seed in SEEDS:
        policy, samples = f"sft/seed{seed}", f"samples/seed{seed}"
        rewards = {name: f"reward_{name}/seed{seed}" for name in REWARDS}
        made += [
            Job(policy, functools.partial(_sft, folder, size, seed), ("data",)),
            Job(samples, functools.partial(_sample, folder, size, seed), (policy,)),
            *(
                Job(job, functools.partial(_reward, folder, size, name, seed), (samples,))
                for name, job in rewards.items()
            ),
            Job(
                f"steered/seed{seed}",
                functools.partial(_steer, folder, size, seed),
                tuple(rewards.values()),
            ),
        ]
    return made


def _prepare(data: Path, job: Path) -> dict[str, Any]:
    return dict(rnnlg_data.prepare(data, job, rnnlg.VOCAB_SIZE))


def _train(
    folder: Path, job: Path, files: tuple[Path, Path], kind: str, rate: float, updates: int, **options: Any
) -> dict[str, Any]:  # fmt: skip
    pairs = kind == "pair"
    return train(
        model_dir=str(job / "run"),
        data=TaskData(
            task=f"rnnlg_{kind}",
            cache_dir=str(job / "cache"),
            feature_lengths=rnnlg.LENGTHS,
            vocabulary=str(folder / "data" / "spm.model"),
            train_file=str(files[0]),
            validation_file=str(files[1]),
            kind=kind,
            duplicates="keep",
            eval_split="",
            pack=True,
            row_lengths={"inputs": 128, "targets": 192 if pairs else 128},
        ),
        optimizers={
            "policy": adamw(
                rate, warmup_steps=20, schedule="cosine", total_steps=updates, clip_norm=1.0
            )
        },
        loop=constant_loop(updates),
        batch_size=8 if pairs else 16,
        **options,
    )


def _sft(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    summary = _train(
        folder,
        job,
        (folder / "data/train.jsonl", folder / "data/validation.jsonl"),
        "seq2seq",
        2e-3,
        size.sft_updates,
        objective=SFT(policy=rnnlg.POLICY),
        random_seed=seed,
    )
    return {"loss": summary["train"]["loss"]}


def _sample(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Writes compared samples of the policy."""
    policy, params, vocabulary = rnnlg.load_policy(folder / f"sft/seed{seed}" / "run")
    counts: dict[str, Any] = {}
    for split, count in (("train", size.acts), ("validation", size.judged["validation"])):
        acts = rnnlg_data.some_acts(folder / "data", split, count)
        tokens = rnnlg.generate_responses(policy, params, vocabulary, acts, samples=4, seed=seed)
        texts = [[vocabulary.decode(sample) for sample in samples] for samples in tokens]
        counts[split] = rnnlg_data.write_feedback(job, split, acts, texts)
    return counts


def _reward(folder: Path, size: Size, name: str, seed: int, job: Path) -> dict[str, Any]:
    samples = folder / f"samples/seed{seed}"
    summary = _train(
        folder,
        job,
        (samples / "pairs.train.jsonl", samples / "pairs.validation.jsonl"),
        "pair",
        LEARNING_RATE,
        size.reward_updates,
        objective=objective_from_gin(
            ["goal_conditioned_reward_model"],
            {"CONTRAST_WEIGHT": REWARDS[name]},
            policy=rnnlg.POLICY,
        ),
        start_from=StartFrom(str(folder / f"sft/seed{seed}" / "run")),
        random_seed=seed,
    )
    return {"train": summary["train"], "auroc": _prefix_aurocs(job / "run", samples)}


def _prefix_aurocs(run: Path, samples: Path) -> dict[str, list[float]]:
    """Returns how well Q and the reward head tell samples without wrong slots from others, by the share of the sample that is read."""
    rows = read_rows(samples / "triplets.validation.jsonl")
    scores = PrefixReader(run, samples).read(rows)
    right = np.array([row["feedback"] == 0 for row in rows])
    return {
        "q": aurocs(scores.values, scores.mask, right),
        "reward": aurocs(scores.rewards, scores.mask, right),
    }


class PrefixReader:
    """A run's reward network, with the mean last state of the chosen training samples as goal."""

    def __init__(self, run: Path, samples: Path) -> None:
        opened = Run(run).reward()
        self.network, self.params = opened.network, opened.params
        self._encoder = rnnlg.text_encoder(opened.vocabulary)
        pairs = read_rows(samples / "pairs.train.jsonl")
        self.goal = goal_vector(
            self.network,
            self.params,
            self._encoder.prompts([row["prompt"] for row in pairs]).tokens,
            self._encoder.responses([row["chosen"] for row in pairs]).tokens,
            batch_size=128,
        )

    def read(self, rows: Sequence[dict[str, Any]]) -> PrefixScores:
        """Returns the scores of all prefixes of responses."""
        return score_prefixes(
            self.network,
            self.params,
            self.goal,
            self._encoder.prompts([row["prompt"] for row in rows]).tokens,
            self._encoder.responses([row["response"] for row in rows]).tokens,
            batch_size=128,
        )


class Score:
    """A decoding score of a run's reward network, in units of its standard deviation over finished samples."""

    def __init__(self, run: Path, kind: str, samples: Path) -> None:
        self._reader, self._kind = PrefixReader(run, samples), kind
        scores = self._reader.read(read_rows(samples / "triplets.validation.jsonl"))
        values = scores.values if kind == "q" else scores.rewards
        self.deviation = float(at_share(values, scores.mask, 1.0).std())

    def hooks(self, weight: float) -> Hooks:
        """Returns the hook that adds the score with a weight in nats per standard deviation."""
        scaled = weight / self.deviation
        network, params = self._reader.network, self._reader.params
        if self._kind == "q":
            return Hooks(score=goal_score(network, params, self._reader.goal, scaled, CANDIDATES))
        return Hooks(score=reward_score(network, params, scaled, CANDIDATES))


def _steer(folder: Path, size: Size, seed: int, job: Path) -> dict[str, Any]:
    """Chooses each score's weight on validation acts, and judges plain and steered responses to test acts."""
    del job
    policy, params, vocabulary = rnnlg.load_policy(folder / f"sft/seed{seed}" / "run")
    encoder = rnnlg.text_encoder(vocabulary)
    acts = {
        split: rnnlg_data.some_acts(folder / "data", split, count)
        for split, count in size.judged.items()
    }
    prompts = {split: encoder.prompts(texts).tokens for split, texts in acts.items()}

    def judge(split: str, mode: str, hooks: Hooks) -> dict[str, float]:
        tokens, log_probs = generate_tokens(
            policy, params, prompts[split], MODES[mode], batch_size=64, seed=seed, hooks=hooks
        )
        return judged(acts[split], [response_tokens(each[0]) for each in tokens], log_probs, vocabulary)  # fmt: skip

    found: dict[str, Any] = {
        mode: {
            "plain": {
                **judge("test", mode, Hooks()),
                "validation": {"0": judge("validation", mode, Hooks())},
            }
        }
        for mode in MODES
    }
    for name, (reward, kind) in SCORES.items():
        score = Score(
            folder / f"reward_{reward}/seed{seed}" / "run", kind, folder / f"samples/seed{seed}"
        )
        for mode in MODES:
            curve = {weight: judge("validation", mode, score.hooks(weight)) for weight in WEIGHTS}
            best = min(WEIGHTS, key=lambda weight: curve[weight]["slot_errors"])
            found[mode][name] = {
                "weight": best,
                **judge("test", mode, score.hooks(best)),
                "validation": {f"{weight:g}": measures for weight, measures in curve.items()},
            }
    return found


def judged(
    acts: Sequence[str], tokens: Sequence[Sequence[int]], log_probs: np.ndarray, vocabulary: Any
) -> dict[str, float]:
    """Returns slot errors, lengths in tokens, diversity, and the log-probability under the policy alone."""
    texts = [vocabulary.decode(each) for each in tokens]
    return {
        "slot_errors": rnnlg_data.slot_error_rate(acts, texts),
        "length": float(np.mean([len(each) for each in tokens])),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "log_prob": float(log_probs.mean()),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "goal_steering", jobs)


if __name__ == "__main__":
    main()
