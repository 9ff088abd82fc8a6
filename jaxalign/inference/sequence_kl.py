"""KL divergence of whole responses, summed exactly over the vocabulary at every position of sampled responses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxalign.data.batches import Batch
from jaxalign.errors import UserError
from jaxalign.inference.rows import Tokens, by_batch
from jaxalign.losses.distillation import forward_kl
from jaxalign.networks.distributions import map_distributions
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.networks.scoring import per_response_sum
from jaxalign.networks.shapes import PerResponseOutputs
from jaxalign.parallel.row_devices import RowDevices


def sequence_kl(
    first: tuple[TokenPolicy, Any],
    second: tuple[TokenPolicy, Any],
    prompts: Sequence[Tokens],
    responses: Sequence[Sequence[Tokens]],
    *,
    batch_size: int = 32,
) -> Float[np.ndarray, "prompts responses"]:
    """Returns ``sum_t KL(first(. | x, y_<t) || second(. | x, y_<t))`` along each response, in nats.

    By the chain rule, its expectation over responses of the first policy (temperature 1, no top-k) is KL(first || second) of whole
    responses, of responses cut at the length limit too. No term is negative, and the next token's choice adds no variance, as it does
    in the log-ratio of a sampled response. Equal parameters give exactly 0.

    Args:
      first, second: two policies over one vocabulary, with their parameters.
      prompts: token ids that end with EOS.
      responses: `[prompts][K]` token ids, with EOS if the response ended.
      batch_size: prompts computed together.

    Raises:
      UserError: the networks have different numbers of tokens.
      ValueError: a prompt has another number of responses.
    """
    sizes = [policy.vocab_size for policy, _ in (first, second)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the KL needs two policies over the same tokens, and these have {sizes[0]} and {sizes[1]} (vocab_size)"
        )
    params = (first[1], second[1])
    devices = RowDevices(params[0])
    found = np.zeros((len(prompts), len(responses[0]) if responses else 0))
    for index, batch in by_batch(prompts, responses, devices.multiple(batch_size)):
        with devices.active():
            sums = _per_response(first[0], second[0], *params, devices.put(batch))
        found[index] = np.asarray(sums)[: len(index)]
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _per_response(
    first: TokenPolicy, second: TokenPolicy, first_params: Any, second_params: Any, batch: Batch
) -> PerResponseOutputs:
    distributions = [
        policy.distributions(params, policy.decode(params, batch))
        for policy, params in ((first, first_params), (second, second_params))
    ]
    # Rounding may leave -1e-8 where the two nearly agree.
    per_token = map_distributions(
        lambda own, theirs: jnp.maximum(forward_kl(own, theirs), 0.0),
        distributions,
        chunk_size=first.logits_chunk_size,
    )
    return per_response_sum(
        per_token,
        batch["decoder_segment_ids"],
        num_examples=1,
        num_responses=batch["response_mask"].shape[-1],
    )
