"""Judges of the equal-footing study: the exact reward of new samples, and the ranking of held-out rated sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data import slots
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.evaluation.ranking import rank_methods, ranking_scores
from jaxalign.evaluation.statistics import distinct_n, kl_estimate
from jaxalign.inference.rows import score_responses
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.runs.folder import Run
from studies import rnnlg, rnnlg_data
from studies.equal_footing_forms import RATINGS, read_rows

JUDGED = {"validation": 200, "test": 400}
_LOG_RATIO = "tau * log-ratio"


def judge_samples(folder: Path, run: Path, reference: Path, split: str) -> dict[str, Any]:
    """Judges one sample at temperature 1 for each of a number of acts: exact reward, KL from the SFT policy, length."""
    prompts = rnnlg_data.acts(folder / "rnnlg" / "data", split)
    generator = np.random.default_rng(0)
    prompts = [prompts[i] for i in sorted(generator.permutation(len(prompts))[: JUDGED[split]])]
    policy, params, vocabulary = rnnlg.load_policy(run)
    sampled = rnnlg.generate_responses(policy, params, vocabulary, prompts, samples=1, seed=1)
    encoded = rnnlg.text_encoder(vocabulary).prompts(prompts).tokens
    start = rnnlg.load_policy(reference)[1]
    divergences = sequence_kl((policy, params), (policy, start), encoded, sampled, batch_size=128)
    texts = [vocabulary.decode(each[0]) for each in sampled]
    rewards = [rnnlg_data.feedback(act, text) for act, text in zip(prompts, texts, strict=True)]
    return {
        "score": float(np.mean(rewards)),
        "reward": float(np.mean(rewards)),
        "slot_error_rate": rnnlg_data.slot_error_rate(prompts, texts),
        "kl": kl_estimate(divergences).mean,
        "length": float(np.mean([len(each[0]) for each in sampled])),
        "distinct_2": distinct_n(texts, 2),
        "slots": sum(slots.slot_errors(a, t).total for a, t in zip(prompts, texts, strict=True)),
        "rewards": [round(reward, 4) for reward in rewards],
    }


def rating_log_probs(
    rows: list[dict[str, Any]], run: Path, reference: Path
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns log-probabilities of rated sentences under a run and its reference, and the lengths of the sentences in tokens."""
    opened = Run(run).policy()
    lengths = RATINGS.lengths
    limits = Limits(lengths["inputs"], lengths["targets"], "truncate_left")
    encoder = TextEncoder(opened.vocabulary, limits)
    prompts = encoder.prompts([row["prompt"] for row in rows]).tokens
    answers = encoder.responses([row["response"] for row in rows]).tokens
    responses = [[tokens] for tokens in answers]
    log_probs = [
        score_responses(each.network, each.params, prompts, responses)[0][:, 0]
        for each in (opened, Run(reference).policy())
    ]
    return log_probs, np.array([len(each[0]) for each in responses])


def judge_ranking(folder: Path, run: Path, reference: Path, split: str) -> dict[str, Any]:
    """Correlates the log-ratio with human ratings of held-out sentences (Spearman), with baselines; statistics of the log-ratio."""
    rows = read_rows(folder / "nlg_ratings" / "data" / f"{split}.jsonl")
    log_probs, lengths = rating_log_probs(rows, run, reference)
    methods = ranking_scores(log_probs[0], log_probs[1], [row["response"] for row in rows], tau=1.0)
    feedback = np.array([row["feedback"] for row in rows])
    ranked = rank_methods(methods, feedback, [row["prompt"] for row in rows])
    log_ratios = log_probs[0] - log_probs[1]
    return {
        "score": ranked[_LOG_RATIO].spearman,
        "spearman": ranked[_LOG_RATIO].spearman,
        "interval": [ranked[_LOG_RATIO].spearman_low, ranked[_LOG_RATIO].spearman_high],
        "responses": len(rows),
        "baselines": {
            name: ranked[name].spearman for name in ("reference log-prob", "longer wins")
        },
        "log_ratio": float(log_ratios.mean()),
        "log_ratio_std": float(log_ratios.std()),
        "length_correlation": float(np.corrcoef(log_ratios, lengths)[0, 1]),
    }
