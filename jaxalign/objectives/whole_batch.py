"""An objective whose loss function lets all examples of a step meet."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.losses.masking import masked_sum
from jaxalign.objectives.base import Batch, LossOutput, Params, PerResponse, mask_of
from jaxalign.objectives.responses import Responses


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeBatch(Responses):
    """A loss in which the examples of a step meet: contrast matrices, batch means, pairs across prompts.

    The step may split its batch into microbatches, and then no microbatch sees all examples. So the derivative of the loss with respect
    to every response's log-probability is computed first, for the whole batch, and each microbatch only multiplies its share by the
    gradient of its own log-probabilities. This is the chain rule, split between loss and network. Dropout must be
    off, since the log-probabilities are computed twice.
    """

    sees_whole_batch: ClassVar[bool] = True

    def prepare(self, params: Params, batch: Batch) -> Batch:
        scores, _ = self._quantities(jax.lax.stop_gradient(dict(params)), batch, None)

        def total(log_probs: PerResponse) -> tuple[Array, tuple[Array, Array]]:
            quantities = self._others(params, batch, log_probs, scores.lengths)
            losses, weights = self._call(quantities, batch)
            return jnp.sum(losses), (losses, weights)

        coefficients, (losses, weights) = jax.grad(total, has_aux=True)(scores.log_probs)
        rows = batch["response_mask"].shape[0]
        shares = {"coefficients": coefficients, "losses": losses, "weights": weights}
        return {
            **batch,
            **{
                f"whole_batch_{name}": jax.lax.stop_gradient(array.reshape(rows, -1))
                for name, array in shares.items()
            },
        }

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        if "whole_batch_coefficients" not in batch:
            return super().loss(params, batch, rng)
        if rng is not None:
            raise UserError(
                f"objective {self.name} with microbatches cannot use dropout: log-probabilities are computed twice. Set DROPOUT_RATE = 0."
            )
        scores, quantities = self._quantities(params, batch, rng)
        log_probs = scores.log_probs
        coefficients = batch["whole_batch_coefficients"].reshape(log_probs.shape)
        losses, weight = batch["whole_batch_losses"].sum(), batch["whole_batch_weights"].sum()
        # x - sg(x) is 0 with the gradient of x.
        linear = masked_sum(
            coefficients * (log_probs - jax.lax.stop_gradient(log_probs)), mask_of(batch)
        )
        return LossOutput(
            losses + linear,
            weight,
            self._metrics(scores, quantities, batch, losses, weight),
        )
