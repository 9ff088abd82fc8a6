"""A policy as the judge of pairs of responses: it reads both in one prompt, and its logits of two choices are its preference.

After OSP (arXiv 2405.14103; a reconstruction, its details are our own): the choice is the first token that the decoder writes,
s(a, b) = sigmoid(logit of the first choice - logit of the second), and both orders are averaged, which removes the position bias.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from jaxalign.annotation.annotators import register_annotator
from jaxalign.annotation.flat import file_identity, run_identity
from jaxalign.annotation.policy_scores import TextPolicy
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError, require_range
from jaxalign.inference.rows import score_responses

PLACES = ("{prompt}", "{first}", "{second}")
TEMPLATE = "which response is better ? prompt : {prompt} response A : {first} response B : {second}"


def fill(template: str, prompt: str, first: str, second: str) -> str:
    """Returns the text that a judge reads. Braces in the texts themselves are left alone."""
    parts = {"{prompt}": prompt, "{first}": first, "{second}": second}
    pieces = [template]
    for place in PLACES:
        pieces = [part for piece in pieces for part in _separated(piece, place)]
    return "".join(parts.get(piece, piece) for piece in pieces)


def _separated(text: str, place: str) -> list[str]:
    """Returns the text around every occurrence of a place, and the place itself between."""
    if text in PLACES:
        return [text]
    found: list[str] = []
    for index, part in enumerate(text.split(place)):
        found += [place, part] if index else [part]
    return found


def read_template(path: str) -> str:
    """Returns the template in a file, without the line break at its end; the built-in one if there is no path.

    Raises:
      UserError: the file cannot be read, or a place is missing.
    """
    if not path:
        return TEMPLATE
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template {path}: cannot be read ({error})") from None
    missing = [place for place in PLACES if place not in text]
    if missing:
        raise UserError(f"template {path}: has no {missing[0]}; it needs {', '.join(PLACES)}")
    return text


def choice_pieces(vocabulary: Any, choices: str) -> tuple[int, int]:
    """Returns the token ids of two choices, which must each be one piece.

    Args:
      vocabulary: the vocabulary of the judge.
      choices: the choices, separated by a slash, such as "A/B" or "yes/no". The first one says that the first response is better.

    Raises:
      UserError: there are not two choices, or one of them is not a single known piece.
    """
    texts = [text.strip() for text in choices.split("/")]
    if len(texts) != 2 or not all(texts) or texts[0] == texts[1]:
        raise UserError(f"self_judge.choices is {choices!r}; write two of them as A/B or yes/no")
    pieces = [[int(token) for token in vocabulary.encode(text)] for text in texts]
    for text, tokens in zip(texts, pieces, strict=True):
        if len(tokens) != 1 or tokens[0] == vocabulary.unk_id:
            known = "an unknown piece" if tokens == [vocabulary.unk_id] else f"{len(tokens)} pieces"
            raise UserError(
                f"self_judge.choices: {text!r} is {known} of the run's vocabulary; each choice must be a single piece, so choose others"
            )
    if pieces[0] == pieces[1]:
        raise UserError(f"self_judge.choices: both of {choices!r} are the same piece")
    return pieces[0][0], pieces[1][0]


@register_annotator("self_judge")
@dataclasses.dataclass(frozen=True)
class SelfJudge:
    """P(i preferred to j) of all pairs of a prompt's responses, from a run's policy that reads both in one prompt.

    A pair whose text is longer than the run's prompts is missing, because a cut prompt would lack a response; such pairs are counted.

    Attributes:
      policy: the run folder or checkpoint of the judge; it should have seen the template in training.
      template: a file with the text that the judge reads, with {prompt}, {first} and {second}; a built-in one by default.
      choices: the two choices, each one piece of the vocabulary; the first says that the first response is better.
      temperature: the difference of the logits is divided by it; above 1 makes the judge less certain.
      step: a step number, `best` or `latest`.
      batch_size: the number of pairs of one forward pass.
    """

    policy: str
    template: str = ""
    choices: str = "A/B"
    temperature: float = 1.0
    step: str = ""
    batch_size: int = 32

    kind: ClassVar[str] = "preferences"
    whole_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_range("self_judge", "(0, inf)", temperature=self.temperature)

    @functools.cached_property
    def _policy(self) -> TextPolicy:
        return TextPolicy(self.policy, self.step, self.batch_size)

    @functools.cached_property
    def _template(self) -> str:
        return read_template(self.template)

    @functools.cached_property
    def _pieces(self) -> tuple[int, int]:
        return choice_pieces(self._policy.run.vocabulary, self.choices)

    def identity(self) -> Mapping[str, Any]:
        return {
            "policy": run_identity(self._policy.run),
            "template": file_identity(self.template) if self.template else TEMPLATE,
            "choices": self.choices,
            "temperature": self.temperature,
        }

    def check(self, candidates: Candidates) -> None:
        """Raises `UserError` if the template or the choices cannot be used."""
        del candidates
        _ = self._template, self._pieces

    def counts(self) -> dict[str, int]:
        """Returns the number of comparisons that were too long for the judge."""
        return dict(+self._policy.counts)

    def annotate(self, candidates: Candidates) -> Sequence[np.ndarray]:
        orders = [
            (index, i, j)
            for index, texts in enumerate(candidates.responses)
            for i, j in itertools.permutations(range(len(texts)), 2)
        ]
        texts = [
            fill(
                self._template,
                candidates.prompts[index],
                candidates.responses[index][i],
                candidates.responses[index][j],
            )
            for index, i, j in orders
        ]
        shown = dict(zip(orders, self.judge(texts), strict=True))
        preferences = [np.full((len(group), len(group)), np.nan) for group in candidates.responses]
        for index, i, j in orders:
            preferences[index][i, j] = debias(shown[index, i, j], shown[index, j, i])
        return preferences

    def judge(self, texts: Sequence[str]) -> np.ndarray:
        """Returns s(first, second) of every filled template; NaN where the text is too long."""
        vocabulary, limit = self._policy.run.vocabulary, self._policy.run.length("inputs")
        tokens = [
            [*vocabulary.prompt_prefix, *map(int, ids), vocabulary.eos_id]
            for ids in vocabulary.encode_batch(list(texts))
        ]
        fits = [index for index, ids in enumerate(tokens) if len(ids) <= limit]
        self._policy.counts["too long comparisons"] += len(tokens) - len(fits)
        found = np.full(len(texts), np.nan)
        if not fits:
            return found
        first, second = self._pieces
        # A response of one token without EOS: its log-probability is that of the choice at the decoder's first position.
        log_probs, _ = score_responses(
            self._policy.trained.network,
            self._policy.trained.params,
            [tokens[index] for index in fits],
            [[[first], [second]]] * len(fits),
            batch_size=self.batch_size,
        )
        self._policy.require_finite([log_probs], "log-probabilities")
        found[fits] = sigmoid((log_probs[:, 0] - log_probs[:, 1]) / self.temperature)
        return found


def debias(
    first_order: Float[np.ndarray, "*pairs"] | float,
    second_order: Float[np.ndarray, "*pairs"] | float,
) -> Float[np.ndarray, "*pairs"] | float:
    """Returns ``P(a > b) = (s(a, b) + 1 - s(b, a)) / 2``, which removes a judge's position bias by averaging both orders.

    Args:
      first_order: ``s(a, b)``, the judge's probability for a when a is shown first.
      second_order: ``s(b, a)``, the judge's probability for b when b is shown first.
    """
    return 0.5 * (first_order + 1 - second_order)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Returns the logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))
