"""JPO: comparisons between responses to different prompts (Bansal et al. 2024, arXiv 2404.00530, first called DOVE).

The paper's loss is DPO on the log-ratio of prompt and response together. A T5 gives no probability to a prompt, so its part is left
out. With one prompt on both sides it cancels, and JPO is DPO; between prompts the difference of their log-normalisers is ignored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import require_nonnegative, require_positive
from jaxalign.losses.masking import as_float32
from jaxalign.losses.requirements import named, requires

PerExample = Float[Array, " examples"]
PerResponse = Float[Array, "examples responses"]


@named("jpo_pairs")
@requires(distinct_prompts=True, one_scale=True, paired_lines=True)
def paired_jpo_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    mask: Bool[Array, "examples responses"],
    *,
    beta: float,
) -> tuple[PerExample, PerExample]:
    """JPO on stated comparisons: examples 0 and 1 of the batch are one, examples 2 and 3 the next, and so on.

    Unlike `in_batch_jpo_loss`, which compares whatever meets in a batch, this uses exactly the comparisons of the data, within a prompt
    or between prompts. Higher feedback wins, ties are dropped.

    Args:
      log_ratios: log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      feedback: the two numbers of a comparison.
      mask: which responses exist.
      beta: inverse temperature, per nat.

    Returns:
      Losses and weights, of a comparison at its first example.
    """
    require_positive("jpo_pairs", beta=beta)
    log_ratios, feedback = as_float32(log_ratios, feedback)
    examples = log_ratios.shape[0]
    if examples % 2:
        raise UserError(
            f"objective jpo_pairs needs an even number of examples in a batch, not {examples}: change BATCH_SIZE"
        )
    # Existing examples first, in their order, so that empty rows do not separate the two of a comparison.
    order = jnp.argsort(~mask.any(axis=1), stable=True)
    ratios, feedback, mask = jnp.where(mask, log_ratios, 0)[order], feedback[order], mask[order]
    signs = jnp.sign(feedback[0::2] - feedback[1::2])
    signs = jnp.where(mask[0::2] & mask[1::2], signs, 0)
    losses = jax.nn.softplus(-beta * signs * (ratios[0::2] - ratios[1::2]))

    def at_first(values: Array) -> PerExample:
        sums = jnp.sum(jnp.where(signs != 0, values, 0), axis=1)
        both = jnp.stack([sums, jnp.zeros_like(sums)], axis=1).reshape(-1)
        return both[jnp.argsort(order)]

    return at_first(losses), at_first(jnp.ones_like(losses))


@named("jpo")
@requires(distinct_prompts=True, one_scale=True)
def in_batch_jpo_loss(
    log_ratios: PerResponse,
    feedback: PerResponse,
    prompt_ids: Int[Array, " examples"],
    mask: Bool[Array, "examples responses"],
    *,
    beta: float,
    joint_weight: float = 1.0,
) -> tuple[PerExample, PerExample]:
    """JPO on pairs found in the batch: within every prompt, and between neighbouring examples of different prompts.

    Higher feedback wins, ties are dropped. Between neighbours response k meets response k, so feedback has to be on one scale across
    prompts. Holes are skipped: a neighbour is the next example that exists. Where an example has one response only, neighbours with
    the same prompt make the pairs within a prompt.

    Args:
      log_ratios: log pi(y|x) - log pi_ref(y|x), summed over tokens, in nats.
      feedback: what is compared, in any unit.
      prompt_ids: equal for examples of one prompt.
      mask: which responses exist.
      beta: inverse temperature, per nat.
      joint_weight: of a pair across prompts, where one within a prompt counts 1; 0 is DPO on the pairs within prompts.

    Returns:
      Sums of the losses of each example's pairs, and sums of their weights.
    """
    require_positive("in_batch_jpo", beta=beta)
    require_nonnegative("in_batch_jpo", joint_weight=joint_weight)
    log_ratios, feedback = as_float32(log_ratios, feedback)
    log_ratios = jnp.where(mask, log_ratios, 0)

    def compare(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, Array]:
        (ratio, score, exists), (other_ratio, other_score, other_exists) = first, second
        sign = jnp.where(exists & other_exists, jnp.sign(score - other_score), 0)
        losses = jax.nn.softplus(-beta * sign * (ratio - other_ratio))
        return jnp.where(sign != 0, losses, 0), jnp.abs(sign)

    arrays = (log_ratios, feedback, mask)
    columns = tuple(array[:, :, None] for array in arrays)
    rows = tuple(array[:, None, :] for array in arrays)
    responses = log_ratios.shape[1]
    upper = jnp.triu(jnp.ones((responses, responses), bool), 1)
    within, within_weights = (
        jnp.sum(jnp.where(upper, values, 0), axis=(1, 2)) for values in compare(columns, rows)
    )

    # Existing examples first, in their order, so that the next one is the next index.
    order = jnp.argsort(~mask.any(axis=1), stable=True)
    sorted_arrays = tuple(array[order] for array in arrays)
    ids = prompt_ids[order]
    heads = tuple(array[:-1] for array in sorted_arrays)
    tails = tuple(array[1:] for array in sorted_arrays)
    same_prompt_weight = 1.0 if responses == 1 else 0.0
    weights = jnp.where(ids[:-1] != ids[1:], joint_weight, same_prompt_weight)
    across, across_weights = (
        jnp.pad(weights * jnp.sum(values, axis=1), (0, 1))[jnp.argsort(order)]
        for values in compare(heads, tails)
    )
    return within + across, within_weights + across_weights
