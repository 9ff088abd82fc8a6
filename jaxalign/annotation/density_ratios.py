"""Stores density ratios of prompts between desirable and undesirable responses beside a cache, for BCO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.annotation.advantages import check_vocabulary, packed_batches, say_other_cut
from jaxalign.annotation.logistic_regression import density_ratios as fitted_ratios
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError, require_range
from jaxalign.interop.opening import open_run
from jaxalign.networks.value import pool_segments
from jaxalign.parallel import partitioning, row_devices


def density_ratios(
    *,
    checkpoint: str,
    cache_dir: str,
    name: str,
    threshold: float = 0.5,
    regularization: float = 1.0,
    batch_size: int = 32,
    step: str = "",
) -> None:
    """Stores p(prompt | desirable) / p(prompt | undesirable) for every response of a cached task.

    A balanced logistic regression on mean-pooled encoder states distinguishes the prompts of both kinds. It is fitted on the training
    split (BCO's underlying distribution matching, arXiv 2404.04656).

    Args:
      checkpoint: the policy whose encoder embeds the prompts, usually the reference: a run folder, a Hugging Face folder or its ``hf://``
        address.
      cache_dir: the cached task.
      name: the name of the stored array. Training reads it with STORED_FIELDS = {'density_ratios': NAME}. An existing array of that name
        is replaced.
      threshold: a response is desirable if its feedback, in the units of the feedback, exceeds this value, as in the loss.
      regularization: the regularization of the classifier, the inverse of scikit-learn's C.
      batch_size: the number of rows per forward pass; short prompts share rows.
      step: the checkpoint: a number, 'best' or 'latest'; by default the best if one was kept, else the latest.

    Raises:
      UserError: the cache has no feedback, no training split or another vocabulary, or all responses are of one kind.
    """
    require_range("density_ratios", "[1, inf)", batch_size=batch_size)
    require_range("density_ratios", "[0, inf)", regularization=regularization)
    require_range("density_ratios", "(-inf, inf)", threshold=threshold)
    run = open_run(checkpoint, step)
    trained = run.policy()
    policy, params = trained.network, trained.params
    cache = TaskCache(cache_dir)
    metadata = cache.metadata
    if "feedback" not in metadata.fields or "train" not in metadata.splits:
        raise UserError(
            f"density ratios need feedback and a split 'train' to fit on; {cache_dir} has the fields "
            f"{', '.join(metadata.fields) or 'none'} and the splits {', '.join(metadata.splits)}"
        )
    check_vocabulary(metadata, cache_dir, run)
    say_other_cut(cache, run)
    mesh = row_devices.local_mesh()
    batch_size = row_devices.divisible_rows(mesh, batch_size)

    @jax.jit
    def embed(batch):  # type: ignore[no-untyped-def]
        states = policy.encode(params, batch)
        pooled = pool_segments(
            states, batch["encoder_segment_ids"], batch["response_mask"].shape[1]
        )
        return jnp.asarray(pooled).reshape(-1, pooled.shape[-1])

    splits = {}
    for split, count in metadata.num_examples.items():
        responses = metadata.responses_per_example
        embeddings = np.zeros((count, policy.config.encoder_width))
        feedback, present = np.zeros((count, responses)), np.zeros((count, responses), bool)
        for batch in packed_batches(cache, split, batch_size, run.description.row_lengths):
            with partitioning.set_mesh(mesh):
                vectors = np.asarray(embed(partitioning.make_global_batch(mesh, batch)), np.float64)
            ids = batch["example_ids"].reshape(-1)
            real = ids >= 0
            embeddings[ids[real]] = vectors[real]
            feedback[ids[real]] = batch["feedback"].reshape(-1, responses)[real]
            present[ids[real]] = batch["response_mask"].reshape(-1, responses)[real] > 0
        splits[split] = (embeddings, feedback, present)
    training, feedback, present = splits["train"]
    rows, columns = np.nonzero(present)
    centre = training.mean(axis=0)
    scale = training.std(axis=0) + 1e-6
    classifier_rows = (training[rows] - centre) / scale
    labels = feedback[rows, columns] > threshold
    for split, (embeddings, _, present) in splits.items():
        found_rows, found_columns = np.nonzero(present)
        ratios = fitted_ratios(
            classifier_rows,
            labels,
            regularization=regularization,
            evaluate_on=(embeddings[found_rows] - centre) / scale,
        )
        stored = np.ones(present.shape, np.float32)
        stored[found_rows, found_columns] = ratios
        facts = {
            "what": "density ratios: p(prompt | desirable) / p(prompt | undesirable)",
            "threshold": threshold,
            "checkpoint": str(run.folder),
            "step": run.step,
        }
        cache.write_stored(split, name, stored, facts)
        print(
            f"{split}: density ratios of {ratios.size} responses from {np.quantile(ratios, 0.05):.2g} to {np.quantile(ratios, 0.95):.2g} "
            "(5 % to 95 %)"
        )
    print(f"wrote density ratios {name!r} beside {cache_dir}")
