"""Intuitive Fine-Tuning: supervised fine-tuning on prefixes that the policy itself half wrote (Hua et al. 2024, arXiv 2405.11870)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxalign.errors import UserError, require_range
from jaxalign.losses.requirements import Requirements
from jaxalign.losses.segments import first_tokens, shifted
from jaxalign.losses.token_level import (
    ift_algorithm_1_loss,
    ift_code_loss,
    ift_equation_21_loss,
)
from jaxalign.networks.protocols import TokenPolicy
from jaxalign.objectives.base import Batch, LossOutput, Metric, Objective, Params
from jaxalign.objectives.token_weighted import (
    check_normalization,
    divisor,
    likelihood_metrics,
    mean_over_tokens,
    num_tokens,
    segments_of,
    token_sum,
)

FORMS = ("code", "algorithm_1", "equation_21")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IFT(Objective):
    """IFT: a first pass without gradient predicts every token greedily, the second reads true and predicted tokens' embeddings mixed.

    Three different objectives go by this name; see `jaxalign.losses.token_level`. Decoder inputs are constants: no gradient reaches the
    embedding table through them, though it does through the encoder's inputs and a tied output projection. With ``mix`` and ``discount`` 0
    (form 'code') nothing of the method is left, and the objective is SFT, decoder inputs included.

    Attributes:
      policy: the policy network.
      mix: lambda, the predicted token's share of a decoder input, in [0, 1]; 0 needs no first pass.
      discount: gamma of form 'code', alpha of 'algorithm_1'; in [0, 1). Not used by 'equation_21'.
      form: 'code' (as released), 'algorithm_1' or 'equation_21' (as printed).
      detach_weights: token weights as constants; in the released code they are not.
      normalization: 'tokens' is SFT's mean over the tokens of the step's batch; 'responses' is the paper's mean over responses of their
        loss: a mean over tokens for 'code', the printed sums for the other forms.
      z_loss: coefficient of ``log(Z)^2``, added to every token's loss without a weight.
    """

    policy: TokenPolicy
    mix: float = 0.2
    discount: float = 0.95
    form: str = "code"
    detach_weights: bool = False
    normalization: str = "tokens"
    z_loss: float = 0.0

    name: ClassVar[str] = "ift"

    def __post_init__(self) -> None:
        check_normalization("IFT", self.normalization)
        require_range("IFT", "[0, inf)", z_loss=self.z_loss)
        if not 0 <= self.mix <= 1:
            raise UserError(f"IFT.mix must lie in [0, 1], not {self.mix}")
        if not 0 <= self.discount < 1:
            raise UserError(f"IFT.discount must lie in [0, 1), not {self.discount}")
        if self.form not in FORMS:
            raise UserError(f"IFT.form must be one of {', '.join(FORMS)}, not {self.form!r}")

    def requirements(self) -> Requirements:
        return Requirements(imitates=True)

    def loss(self, params: Params, batch: Batch, rng: Array | None) -> LossOutput:
        policy = self.policy
        trained = params["policy"]
        frozen = jax.lax.stop_gradient(trained)
        segments = segments_of(batch)
        encode_rng = None if rng is None else jax.random.split(rng)[0]
        encoded = policy.encode_for_decoder(trained, batch, rng=encode_rng)
        metrics: dict[str, Metric] = {}
        embeddings = None
        if self.mix > 0 or self.form != "code" or self.discount > 0:
            predicted = jnp.asarray(batch["decoder_target_tokens"])
            if self.mix > 0:
                # The same dropout as in the second pass.
                hidden = policy.decode(
                    frozen, batch, rng=rng, encoded=jax.lax.stop_gradient(encoded)
                )
                predicted = policy.greedy_tokens(frozen, hidden)
                hits = (predicted == jnp.asarray(batch["decoder_target_tokens"])).astype(
                    jnp.float32
                )
                metrics["prediction_accuracy"] = Metric(token_sum(hits, batch), num_tokens(batch))
            embeddings = mixed_embeddings(policy, frozen, batch, predicted, mix=self.mix)
        hidden = policy.decode(
            trained, batch, rng=rng, encoded=encoded, decoder_input_embeddings=embeddings
        )
        statistics = policy.token_statistics_of(trained, hidden, batch)
        losses = self._token_losses(-statistics.log_probs, segments)
        if self.z_loss:
            losses += self.z_loss * jnp.square(statistics.log_normalizers)
        if self.normalization == "responses" and self.form == "code":
            losses = mean_over_tokens(losses, batch)
        loss_sum, weight = token_sum(losses, batch), divisor(batch, self.normalization)
        return LossOutput(
            loss_sum,
            weight,
            {
                "loss": Metric(loss_sum, weight),
                **metrics,
                **likelihood_metrics(statistics.log_probs, batch),
            },
        )

    def _token_losses(self, losses: Array, segments: Array) -> Array:
        if self.form == "equation_21":
            return ift_equation_21_loss(losses, segments)
        function = ift_code_loss if self.form == "code" else ift_algorithm_1_loss
        return function(losses, segments, discount=self.discount, detach=self.detach_weights)


def mixed_embeddings(
    policy: TokenPolicy,
    params: Any,
    batch: Batch,
    predicted: Int[Array, "rows length"],
    *,
    mix: float,
) -> Float[Array, "rows length emb"]:
    """Decoder inputs ``(1 - mix) E(y_{t-1}) + mix E(yhat_{t-1})`` without gradient; the start token of a response is not mixed.

    Args:
      policy: whose embedding table is read.
      params: of the policy.
      batch: as the data pipeline makes it.
      predicted: ``yhat_t``, the prediction of target token t; it goes into the input of position t + 1 of the same response.
      mix: lambda.
    """
    segments = segments_of(batch)
    true = policy.embed(params, jnp.asarray(batch["decoder_input_tokens"]))
    if mix == 0:
        return jax.lax.stop_gradient(true)
    guessed = policy.embed(params, shifted(predicted, segments, -1, 0))
    mixed = (1 - mix) * true + mix * guessed
    starts = first_tokens(segments)[:, :, None]
    return jax.lax.stop_gradient(jnp.where(starts, true, mixed))
