"""The judges of `reward_model:RUN`: a reward network on the text, or a reward of scores on features that are read from the text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.annotation import features
from jaxalign.data.encoding import EncodedTexts, TextEncoder, describe_cut
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import predict_rewards
from jaxalign.runs.folder import TrainedNetwork

References = Sequence[Sequence[str]]


def judging_encoder(run: TrainedNetwork) -> TextEncoder:
    """Returns the run's encoder. If the run rejected long prompts, they are cut, because a judge must score every response."""
    return encoder_of(run, long_prompts="truncate" if run.long_prompts == "reject" else "")


class FeatureRewardJudge:
    """A judge that applies a reward network of scores to the features that the named extractors read from text.

    Args:
      run: a run that trained a `FeatureReward` on scores whose names are those of extractors, see `features`.

    Raises:
      UserError: the run does not record the names of its scores, or a name is not that of an extractor.
    """

    name = "reward_model"

    def __init__(self, run: TrainedNetwork) -> None:
        names = run.run.description.score_names
        if len(names) != run.network.num_features:
            raise UserError(
                f"judge 'reward_model': the reward of {run.run.folder} reads {run.network.num_features} scores of a response, and the run "
                f"records the names of {len(names)}; train it again on scores that `jaxalign annotate --annotator=features:...` wrote"
            )
        try:
            self._extractors = [features.get_extractor(name, of_run=True) for name in names]
        except UserError as error:
            raise UserError(
                f"judge 'reward_model': the reward of {run.run.folder} reads scores of a response, not its text, and {error}"
            ) from None
        self._network, self._params = run.network, run.params

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: References | None = None,
    ) -> Float[np.ndarray, " items"]:
        del references
        scores = features.extract(self._extractors, prompts, responses)
        return np.asarray(self._network.phi(self._params, scores.astype(np.float32)), np.float64)


class RewardModelJudge:
    """A judge that applies a reward network to the tokens of prompt and response, in the layout of training.

    Prompts are cut as in the run. A response that is longer than the run's limit is cut at its end, because a judge must score every
    response. The number of cut texts is printed on standard error.
    """

    def __init__(
        self,
        network: Any,
        params: Any,
        encoder: TextEncoder,
        *,
        batch_size: int = 32,
        name: str = "reward_model",
    ) -> None:
        self.name = name
        self._network, self._params, self._encoder = network, params, encoder
        self._batch_size = batch_size

    def score(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: References | None = None,
    ) -> Float[np.ndarray, " items"]:
        read, answers = self._encoder.prompts(prompts), self._encoder.responses(responses)
        self._say_cut(read, answers)
        return predict_rewards(
            self._network, self._params, read.tokens, answers.tokens, batch_size=self._batch_size
        )

    def _say_cut(self, prompts: EncodedTexts, responses: EncodedTexts) -> None:
        limits = self._encoder.limits
        told = describe_cut(prompts.cut, len(prompts.tokens), limits, "as in its training")
        if told:
            print(f"judge {self.name}: {told}", file=sys.stderr)
        if responses.cut:
            print(
                f"judge {self.name}: {responses.cut} of {len(responses.tokens)} responses were cut at their end "
                f"(max_target_length={limits.max_target_length} of its training)",
                file=sys.stderr,
            )
