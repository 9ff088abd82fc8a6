"""What short runs on RNNLG acts share: their data, and measures of a policy's samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.annotation.advantages import advantages
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import distinct_n
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import by_batch, decode_tokens
from jaxalign.networks.distributions import map_distributions
from jaxalign.networks.policy import Policy
from jaxalign.objectives.token_weighted import token_mask
from jaxalign.runs.folder import Run
from studies import rnnlg, rnnlg_data
from studies.fitting import fit, kl_along, sampled
from studies.rounds_arms import LENGTHS, POLICY

# Packed rows that hold about 32 single responses, or 16 pairs, together.
ROWS = {"triplet": 6, "pair": 5, "multi": 5, "seq2seq": 16}
_ROW_LENGTHS = {
    "triplet": {"inputs": 160, "targets": 144},
    "pair": {"inputs": 128, "targets": 192},
    "multi": {"inputs": 128, "targets": 192},
    "seq2seq": {"inputs": 160, "targets": 128},
}


def task(name: str, file: Path, kind: str, vocabulary: Path, cache: Path, **options: Any) -> TaskData:  # fmt: skip
    """Returns the packed data of a run on one file.

    Args:
      name: the task's name.
      file: JSON Lines.
      kind: the kind of its records.
      vocabulary: the SentencePiece model.
      cache: the cache folder.
      **options: of `TaskData`.
    """
    return TaskData(
        task=name,
        cache_dir=str(cache),
        feature_lengths=LENGTHS,
        vocabulary=str(vocabulary),
        train_file=str(file),
        kind=kind,
        duplicates="keep",
        eval_split="",
        pack=True,
        row_lengths=_ROW_LENGTHS[kind],
        **options,
    )


def fit_advantages(
    run: Path,
    data: TaskData,
    logged: TaskData,
    reference: Path,
    *,
    name: str,
    rate: float,
    updates: int,
    seed: int,
) -> float:
    """Fits a value head on the reference's states, and stores the advantages of logged responses under a name.

    Args:
      run: the folder of the value's run.
      data: what V is fitted to; its feedback lies in [0, 1].
      logged: the responses, in a cache.
      reference: the run of the reference.
      name, rate, updates, seed: of the stored advantages, and of the fit.

    Returns:
      The share of training responses with a positive advantage.
    """
    fit(
        run,
        objective_from_gin(
            ["value_regression"], {"UNITS": "feedback", "MAX_VALUE": 1.0}, policy=POLICY
        ),
        data,
        rate=rate,
        updates=updates,
        seed=seed,
        rows=ROWS["triplet"],
        start=reference,
    )
    kept = advantages(
        value_checkpoint=str(run), cache_dir=logged.cache_dir, name=name, units="feedback"
    )
    return float(kept["train"])


def goodness(act: str, sentence: str) -> float:
    """Returns the share of right slots: 1 without errors, 0 with as many errors as slots or more."""
    return max(0.0, 1 + rnnlg_data.feedback(act, sentence))


def entropies(
    params: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> np.ndarray:
    """Returns the entropy of the next token along each response, summed over positions, [prompts], in nats."""
    found = np.zeros(len(prompts))
    for index, batch in by_batch(prompts, [[each] for each in responses], 100):
        found[index] = np.asarray(_entropies(POLICY, params, batch))[: len(index)]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _entropies(policy: Policy, params: Any, batch: Any) -> Any:
    per_token = map_distributions(
        lambda log_probs: -(jax.numpy.exp(log_probs) * log_probs).sum(axis=-1),
        [policy.distributions(params, policy.decode(params, batch))],
        chunk_size=None,
    )
    return (per_token * token_mask(batch)).sum(axis=1)


def measured(run: Path, reference: Path, acts: Sequence[str], *, seed: int = 1) -> dict[str, Any]:
    """Measures a policy by one sample and by the greedy response to each act: exact slots, KL, entropy, diversity, length.

    Args:
      run: a run folder or checkpoint.
      reference: the run from whose policy the KL is measured.
      acts: the acts.
      seed: of the samples.
    """
    opened = Run(run).policy()
    prompts = [list(each) for each in encoder_of(opened).prompts(acts).tokens]
    rows = sampled(POLICY, opened.params, prompts, LENGTHS["targets"], seed)
    texts = [decode_tokens(opened.vocabulary, row) for row in rows]
    tokens = sum(map(len, rows))
    greedy = greedy_texts(run, acts)
    start = Run(reference).policy().params
    return {
        "reward": float(np.mean([goodness(act, text) for act, text in zip(acts, texts, strict=True)])),
        "greedy_reward": float(np.mean([goodness(act, text) for act, text in zip(acts, greedy, strict=True)])),
        "slot_errors": rnnlg_data.slot_error_rate(acts, texts),
        "kl": float(kl_along(POLICY, opened.params, start, prompts, rows).mean()),
        "entropy": float(entropies(opened.params, prompts, rows).sum() / tokens),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "distinct_3": distinct_n(texts, 3),
        "length": tokens / len(rows),
        "samples": texts[:5],
    }  # fmt: skip


def greedy_texts(run: Path, acts: Sequence[str]) -> list[str]:
    """Returns a policy's greedy responses."""
    policy, params, vocabulary = rnnlg.load_policy(run)
    tokens = rnnlg.generate_responses(policy, params, vocabulary, list(acts))
    return [vocabulary.decode(each[0]) for each in tokens]
