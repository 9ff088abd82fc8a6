"""Scores from the log-probabilities of policies: log pi(y|x), and the implicit reward beta log(pi(y|x) / pi_ref(y|x)) of DPO.

The texts are encoded again, so that both policies score the same tokens. A sampler's own log-probabilities (`log_probs` of a file of
`jaxalign generate`) can belong to other tokens: decoding and encoding do not always return them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import lengths_of, run_identity
from jaxalign.data.candidates import Candidates
from jaxalign.data.encoding import TextEncoder
from jaxalign.errors import UserError, require_range
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import score_responses
from jaxalign.interop.opening import open_run
from jaxalign.runs.folder import TrainedNetwork

Tokens = list[int]


class TextPolicy:
    """The policy of a run, with the encoder of its texts.

    Args:
      path: a run folder or checkpoint.
      step: a step number, `best` or `latest`; by default the best if one was kept, else the latest.
      batch_size: the number of prompts of one forward pass.

    Attributes:
      counts: the number of prompts and responses that were cut so far.
    """

    def __init__(self, path: str, step: str = "", batch_size: int = 32) -> None:
        require_range("annotator", "[1, inf)", batch_size=batch_size)
        self.run = open_run(path, step)
        self.batch_size = batch_size
        self.counts: Counter[str] = Counter()

    @functools.cached_property
    def trained(self) -> TrainedNetwork:
        """The network with its parameters, which are read when they are first needed."""
        return self.run.policy()

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """The encoder of the run. It cuts texts that are too long, because every response needs a score."""
        rejects = self.run.long_prompts == "reject"
        return encoder_of(self.run, long_prompts="truncate" if rejects else "")

    def encode(self, candidates: Candidates) -> tuple[list[Tokens], list[list[Tokens]]]:
        """Returns the tokens of every prompt and of all its responses, and counts those that are cut."""
        prompts = self.encoder.prompts(candidates.prompts)
        self.counts["cut prompts"] += prompts.cut
        groups = []
        for texts in candidates.responses:
            found = self.encoder.responses(texts)
            self.counts["cut responses"] += found.cut
            groups.append(found.tokens)
        return prompts.tokens, groups

    def score(
        self, prompts: Sequence[Tokens], groups: Sequence[Sequence[Tokens]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Returns the log-probabilities (nats, sums over tokens) and the lengths of all responses, one array per prompt."""
        sums = [np.zeros(len(group)) for group in groups]
        lengths = [np.zeros(len(group)) for group in groups]
        # A prompt is encoded once for all its responses, so prompts with equally many responses share batches.
        for indices in lengths_of(groups).values():
            found = score_responses(
                self.trained.network,
                self.trained.params,
                [prompts[i] for i in indices],
                [groups[i] for i in indices],
                batch_size=self.batch_size,
            )
            for row, index in enumerate(indices):
                sums[index], lengths[index] = found[0][row], found[1][row]
        self.require_finite(sums, "log-probabilities")
        return sums, lengths

    def require_finite(self, arrays: Sequence[np.ndarray], what: str) -> None:
        """Raises `UserError` if a number that the network computed is NaN or infinite, because NaN would pass for a missing value."""
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"{self.run.folder} gives NaN or infinite {what}; its parameters are not usable, choose another step"
            )


@register_annotator("log_prob")
@dataclasses.dataclass(frozen=True)
class LogProb:
    """log pi(y|x) of a run's policy, in nats, EOS included.

    Attributes:
      policy: the run folder or checkpoint.
      per_token: whether to divide by the number of tokens.
      step: a step number, `best` or `latest`.
      batch_size: the number of prompts of one forward pass.
    """

    policy: str
    per_token: bool = False
    step: str = ""
    batch_size: int = 32

    kind: ClassVar[str] = "scores"
    whole_file: ClassVar[bool] = False

    @functools.cached_property
    def _policy(self) -> TextPolicy:
        return TextPolicy(self.policy, self.step, self.batch_size)

    def identity(self) -> Mapping[str, Any]:
        return {"policy": run_identity(self._policy.run), "per_token": self.per_token}

    def counts(self) -> dict[str, int]:
        """Returns the number of texts that were cut."""
        return dict(self._policy.counts)

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        sums, lengths = self._policy.score(*self._policy.encode(candidates))
        if not self.per_token:
            return sums
        return [total / count for total, count in zip(sums, lengths, strict=True)]


@register_annotator("implicit_reward")
@dataclasses.dataclass(frozen=True)
class ImplicitReward:
    """beta log(pi(y|x) / pi_ref(y|x)) of two runs (arXiv 2305.18290, equation 5, without the constant of the prompt).

    Attributes:
      policy, reference: the run folders or checkpoints. Both score the tokens of the policy's vocabulary.
      beta: the inverse temperature, per nat.
      step, reference_step: step numbers, `best` or `latest`.
      batch_size: the number of prompts of one forward pass.
    """

    policy: str
    reference: str
    beta: float = 0.1
    step: str = ""
    reference_step: str = ""
    batch_size: int = 32

    kind: ClassVar[str] = "scores"
    whole_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_range("implicit_reward", "(0, inf)", beta=self.beta)

    @functools.cached_property
    def _policies(self) -> tuple[TextPolicy, TextPolicy]:
        return (
            TextPolicy(self.policy, self.step, self.batch_size),
            TextPolicy(self.reference, self.reference_step, self.batch_size),
        )

    def identity(self) -> Mapping[str, Any]:
        policy, reference = self._policies
        return {
            "policy": run_identity(policy.run),
            "reference": run_identity(reference.run),
            "beta": self.beta,
        }

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if the runs have different vocabularies."""
        del candidates
        policy, reference = self._policies
        ours, theirs = policy.run.recorded_vocabulary, reference.run.recorded_vocabulary
        if ours is None or theirs is None:
            _ = policy.run.vocabulary, reference.run.vocabulary  # the one that is missing says so
        elif not ours.agrees_with(theirs):
            raise UserError(
                f"annotator 'implicit_reward': {self.policy} and {self.reference} have different vocabularies ({ours.describe()}; "
                f"{theirs.describe()}), so their log-probabilities are not of the same tokens; give runs with one vocabulary"
            )

    def counts(self) -> dict[str, int]:
        """Returns the number of texts that were cut."""
        return dict(self._policies[0].counts)

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        policy, reference = self._policies
        tokens = policy.encode(candidates)
        ours, theirs = policy.score(*tokens)[0], reference.score(*tokens)[0]
        return [self.beta * (one - other) for one, other in zip(ours, theirs, strict=True)]
