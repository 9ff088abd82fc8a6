"""Reference log-probabilities: computed once, stored beside the cached examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.data import pipeline, reference
from jaxalign.data.cache import load_metadata
from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.training import partitioning
from jaxalign.training.loading import load_policy
from jaxalign.training.partitioning import MeshShape


def score(
    *,
    checkpoint: str,
    cache_dir: str,
    name: str = "",
    splits: list[str] | None = None,
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    step: str = "",
) -> None:
    """Adds a reference policy's log-probabilities to a cached task, once.

    Args:
      checkpoint: run folder of the reference policy.
      cache_dir: the cached task.
      name: name of the set of scores; by default ``<run id>-<step>`` of the checkpoint, which training finds by itself.
      splits: splits to score; all that the cache has by default.
      batch_size: rows per forward pass.
      max_input_length: tokens of a prompt; the checkpoint's training length by default.
      max_target_length: tokens of a response; the checkpoint's training length by default.
      step: which checkpoint: a number, 'best' or 'latest'; best, or else latest, by default.
    """
    policy, params, info = load_policy(
        checkpoint, step=int(step) if step.isdigit() else step or None
    )
    lengths = {
        "inputs": max_input_length or info["feature_lengths"]["inputs"],
        "targets": max_target_length or info["feature_lengths"]["targets"],
    }
    name = name or reference_name(info, policy)
    score_splits(
        policy,
        params,
        cache_dir,
        name,
        splits=splits,
        feature_lengths=lengths,
        batch_size=batch_size,
        mesh=partitioning.make_mesh(MeshShape(data=1), jax.local_devices()[:1]),
        info={"checkpoint": info["run"], "step": info["step"]},
    )
    print(
        f"wrote reference scores {name!r} of {info['run']} (step {info['step']}) beside {cache_dir}"
    )


def reference_name(info: Mapping[str, Any], policy: Policy) -> str:
    """The default name of a reference policy's scores: its run and step, and what else of the policy changes log-probabilities."""
    name = f"{info.get('run_id', 'unnamed')}-{info['step']}-{policy.config.dtype}"
    return name if policy.value_token is None else f"{name}-without-{policy.value_token}"


def score_splits(
    policy: Policy,
    params: Any,
    cache_dir: str,
    name: str,
    *,
    splits: Sequence[str] | None,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    mesh: Mesh,
    info: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Scores every response of a cache with a policy; splits that have these scores already are left alone.

    Args:
      policy: the reference policy.
      params: its parameters.
      cache_dir: the cached task.
      name: name of the set of scores.
      splits: names; all by default.
      feature_lengths: ``inputs`` and ``targets`` in tokens.
      batch_size: global rows per forward pass; short examples share rows.
      mesh: where to compute.
      info: JSON kept beside the scores.
      overwrite: score again what is there.

    Raises:
      UserError: if a response has no finite log-probability.
    """
    compiled = jax.jit(lambda params, batch: policy.score(params, batch).log_probs)
    metadata = load_metadata(cache_dir)
    for split in splits or list(metadata["num_examples"]):
        if not overwrite and name in reference.reference_score_names(cache_dir, split):
            continue
        shape = (metadata["num_examples"][split], metadata["responses_per_example"])
        scores = np.zeros(shape, np.float32)
        dataset = pipeline.make_dataset(
            cache_dir,
            split,
            feature_lengths=feature_lengths,
            batch_size=batch_size,
            pack=True,
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
            standardize=False,
        )
        for batch in dataset:
            with partitioning.activate(mesh):
                values = np.asarray(compiled(params, partitioning.put_batch(mesh, batch)))
            ids = batch["example_ids"].reshape(-1)
            mask = batch["response_mask"].reshape(-1, shape[1]) > 0
            present = ids >= 0
            scores[ids[present]] = np.where(mask, values, 0)[present]
        if not np.all(np.isfinite(scores)):
            raise UserError(
                f"the reference policy gives NaN or infinite log-probabilities on {cache_dir}, split {split}"
            )
        reference.write_reference_scores(cache_dir, split, name, scores, dict(info))
