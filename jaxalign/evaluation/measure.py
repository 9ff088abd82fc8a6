"""Measures one policy on an evaluation set: its responses, its KL, its scores of logged responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.encoding import TextEncoder
from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.evaluation.calibration import (
    Calibration,
    calibration,
    dro_targets,
    residual_statistics,
)
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.evaluation.statistics import (
    KLEstimate,
    distinct_n,
    kl_estimate,
    mean_by_group,
    pearson,
)
from jaxalign.inference import sampling
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.image_prompts import EncodedPrompts, encode_prompts, image_counts
from jaxalign.inference.rows import (
    decode_tokens,
    predict_values,
    response_tokens,
    score_responses,
)
from jaxalign.inference.sampling import DecodingSettings
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.runs.folder import Run, TrainedNetwork


@dataclasses.dataclass(frozen=True)
class Answers:
    """One response to each prompt.

    Attributes:
      responses: [prompts] texts.
      lengths: [prompts] the number of tokens, including EOS.
      finished: [prompts] whether the response ended in EOS before the length limit.
    """

    responses: list[str]
    lengths: np.ndarray
    finished: np.ndarray

    def describe(self) -> dict[str, float]:
        """Returns the mean length, the share of unfinished responses, and distinct-1 and -2."""
        return {
            "length": float(self.lengths.mean()),
            "unfinished": float(1 - self.finished.mean()),
            "distinct_1": distinct_n(self.responses, 1),
            "distinct_2": distinct_n(self.responses, 2),
        }


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Measures a policy on an evaluation set, with the settings that all policies share."""

    data: EvaluationSet
    settings: EvaluationSettings

    def answer(self, run: TrainedNetwork) -> Answers:
        """Generates one response to each prompt, at the evaluation's temperature."""
        tokens = self._sample(run, self.settings.temperature, 1, self.settings.seed)[:, 0]
        rows = [response_tokens(row) for row in tokens]
        return Answers(
            [decode_tokens(run.vocabulary, row) for row in rows],
            np.array([len(row) for row in rows]),
            np.array([bool(row) and row[-1] == 1 for row in rows]),
        )

    def kl(self, run: TrainedNetwork, reference: TrainedNetwork, samples: int) -> KLEstimate:
        """Returns KL(policy || reference) in nats for each response, from samples at temperature 1.

        At every position of a sampled response the KL is summed over the whole vocabulary, so the estimate is never negative, and the KL
        of a policy from itself is exactly 0. A response cut at the length limit counts with its existing tokens.
        """
        tokens = self._sample(run, 1.0, samples, self.settings.seed + 1)
        responses = [[response_tokens(row) for row in group] for group in tokens]
        prompts = self._prompts(run, self.data.prompts, self.data.images)
        own, theirs = ((each.network, prompts.beside(each.params)) for each in (run, reference))
        found = sequence_kl(
            own, theirs, prompts.tokens, responses, batch_size=self.settings.batch_size
        )
        return kl_estimate(found)

    def feedback_log_probs(self, run: TrainedNetwork) -> Float[np.ndarray, " items"]:
        """Returns the log-probability of every logged response with feedback, in nats."""
        records = self.data.feedback
        encoded = self.encoder(run).responses([record.response for record in records])
        responses = [[tokens] for tokens in encoded.tokens]
        prompts = self._prompts(
            run, [record.prompt for record in records], [record.image for record in records]
        )
        return score_responses(
            run.network,
            prompts.beside(run.params),
            prompts.tokens,
            responses,
            batch_size=self.settings.batch_size,
        )[0][:, 0]

    def feedback_values(self, value: TrainedNetwork) -> Float[np.ndarray, " items"]:
        """Returns V(x) for the prompt of every logged response with feedback."""
        distinct = {record.prompt_key: record for record in self.data.feedback}
        prompts = self._prompts(
            value,
            [record.prompt for record in distinct.values()],
            [record.image for record in distinct.values()],
        )
        values = predict_values(
            value.network,
            prompts.beside(value.params),
            prompts.tokens,
            batch_size=self.settings.batch_size,
        )
        known = dict(zip(distinct, values, strict=True))
        return np.array([known[record.prompt_key] for record in self.data.feedback])

    def _sample(
        self, run: TrainedNetwork, temperature: float, samples: int, seed: int
    ) -> np.ndarray:
        settings = DecodingSettings(
            max_target_length=run.length("targets", self.settings.max_target_length),
            num_samples=samples,
            temperature=temperature,
        )
        prompts = self._prompts(run, self.data.prompts, self.data.images)
        return sampling.generate_tokens(
            run.network,
            prompts.beside(run.params),
            prompts.tokens,
            settings,
            batch_size=self.settings.batch_size,
            seed=seed,
        )[0]

    def encoder(self, run: Run | TrainedNetwork) -> TextEncoder:
        """Returns the encoder with which a run reads the texts of the evaluation set."""
        return encoder_of(
            run,
            max_input_length=self.settings.max_input_length,
            max_target_length=self.settings.max_target_length,
            long_prompts=self.settings.long_prompts,
            images=True,
        )

    def describe_prompts(self, run: TrainedNetwork) -> tuple[dict[str, float], str]:
        """Returns the shares of cut prompts and of unknown pieces, and a sentence about the cut prompts ('' if none was cut)."""
        encoder = self.encoder(run)
        encoded = encoder.prompts(self.data.prompts, image_counts(run.network, self.data.images))
        shares = {
            "cut_prompts": encoded.cut_fraction,
            "unknown_pieces": encoded.unknown_fraction,
        }
        return shares, encoder.describe_cut(encoded)

    def _prompts(
        self, run: TrainedNetwork, texts: Sequence[str], images: Sequence[bytes | None]
    ) -> EncodedPrompts:
        return encode_prompts(self.encoder(run), run.network, texts, images)


def value_report(
    run: TrainedNetwork,
    values: Float[np.ndarray, " items"],
    log_ratios: Float[np.ndarray, " items"],
    feedback: Float[np.ndarray, " items"],
    prompts: Sequence[Hashable],
) -> tuple[Calibration, dict[str, Any]]:
    """Returns the calibration of V and DRO's residual on logged responses, with rewards standardised as in training.

    Args:
      run: the policy's run.
      values, log_ratios, feedback: of each response.
      prompts: the key of each response's prompt; ``prompt_correlation`` is of V with the mean target of a prompt.
    """
    rewards, tau = run.run.standardized(feedback), run.run.temperature
    targets = dro_targets(rewards, log_ratios, tau)
    result = calibration(values, targets)
    residual = residual_statistics(rewards, values, log_ratios, tau)
    by_prompt = [mean_by_group(each, prompts) for each in (values, targets)]
    more = {
        "mean_reward": float(np.mean(rewards)),
        "mean_log_ratio": float(np.mean(log_ratios)),
        "prompts": len(by_prompt[0]),
        "prompt_correlation": pearson(*by_prompt),
    }
    return result, {**result.to_dict(), **more, **residual, "tau": tau}
