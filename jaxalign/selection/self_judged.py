"""Selectors of on-line methods whose labels come from the policy itself or from a judge of its own samples: SPA, SELM, OSP."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxalign.data.candidates import Candidates
from jaxalign.data.json_lines import read_json_objects
from jaxalign.data.rejections import DataError
from jaxalign.errors import require_one_of, require_range
from jaxalign.selection import judged_pairs
from jaxalign.selection import self_labels as self_labelling
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import (
    MISSING,
    TIE,
    TOO_FEW,
    kept_fields,
    pair_line,
    pair_measures,
    scores_of,
    usable_responses,
)

IN_BAND = "pair with a probability in the band around 1/2"
NO_COMPARISON = "pair without a comparison"
NO_LOGGED = "prompt without logged responses"


@register_selector("self_labels")
@dataclasses.dataclass(frozen=True)
class SelfLabels:
    """SPA's labels: the samples with the highest and the lowest implicit reward make a pair (arXiv 2406.04412, equations 7-8).

    The annotation is ``beta log(policy / reference)``, and the reference is the fine-tuned model that all rounds started from, in every
    round. Records have `margin`, the difference of the implicit rewards, and `probability`, the policy's own probability that the label
    is right. The smoothing of suspect labels is part of the objective `spa`.

    Attributes:
      annotation: implicit rewards, as the annotator `implicit_reward` makes them.
      min_probability: pairs with a smaller probability are left out.
    """

    annotation: str = "implicit_reward"
    min_probability: float = 0.5

    def __post_init__(self) -> None:
        require_range("self_labels", "[0.5, 1)", min_probability=self.min_probability)

    def __call__(self, candidates: Candidates) -> Selection:
        rewards = candidates.annotation(self.annotation, "scores").values
        dropped: Counter[str] = Counter()
        usable = usable_responses(candidates, dropped, rewards)
        padded, mask = _padded(rewards, usable)
        # The rewards include beta, so that a margin is the logit of the label's probability.
        labels = self_labelling.self_labels(
            jnp.asarray(padded), jnp.zeros(padded.shape), jnp.asarray(mask), beta=1.0
        )
        lines = []
        for index, kept in enumerate(usable):
            if not kept:
                continue
            texts = candidates.responses[index]
            chosen, rejected = int(labels.chosen[index]), int(labels.rejected[index])
            margin = float(labels.margins[index])
            probability = float(labels.probabilities[index])
            if margin <= 0:
                dropped[TIE] += 1
            elif probability < self.min_probability:
                dropped["label with a probability below min_probability"] += 1
            else:
                numbers = {"margin": margin, "probability": probability}
                lines.append(
                    pair_line(candidates, index, texts[chosen], texts[rejected], **numbers)
                )
        measures = pair_measures(lines)
        if lines:
            measures["mean_probability"] = float(np.mean([line["probability"] for line in lines]))
        return Selection(lines, "pair", +dropped, measures)


@register_selector("reference_ranked")
@dataclasses.dataclass(frozen=True)
class ReferenceRanked:
    """SELM's records: the best and the worst of {own sample, chosen, rejected} by a judge, then the own sample (arXiv 2405.19332).

    The own sample stands third even if it is the best or the worst. Records have no feedback, because the objective `selm` reads the
    three positions as they are.

    Attributes:
      annotation: the judge's scores or preferences.
      own: the position of the reference policy's own sample among the responses.
    """

    annotation: str = "judge"
    own: int = 0

    def __post_init__(self) -> None:
        require_range("reference_ranked", "[0, inf)", own=self.own)

    def __call__(self, candidates: Candidates) -> Selection:
        scores = scores_of(candidates, self.annotation)
        dropped: Counter[str] = Counter()
        lines, best_is_own, worst_is_own = [], 0, 0
        for index, kept in enumerate(usable_responses(candidates, dropped, scores)):
            texts = candidates.responses[index]
            if not kept:
                continue
            if self.own >= len(texts) or not texts[self.own].strip():
                dropped["prompt without an own sample"] += 1
                continue
            values = scores[index][kept]
            best, worst = kept[int(np.argmax(values))], kept[int(np.argmin(values))]
            if values.max() == values.min():
                dropped[TIE] += 1
                continue
            own = texts[self.own]
            best_is_own += texts[best].strip() == own.strip()
            worst_is_own += texts[worst].strip() == own.strip()
            lines.append(
                {
                    **kept_fields(candidates, index),
                    "prompt": candidates.prompts[index],
                    "responses": [texts[best], texts[worst], own],
                }
            )
        count = max(len(lines), 1)
        measures = {"own_is_best": best_is_own / count, "own_is_worst": worst_is_own / count}
        return Selection(lines, "ranked", +dropped, measures)


@register_selector("with_logged")
@dataclasses.dataclass(frozen=True)
class WithLogged:
    """Candidates with the chosen and rejected responses of logged pairs added after the own samples, to be ranked together by a judge.

    Annotations are left out, because the logged responses have none. A prompt that several pairs have takes the first.

    Attributes:
      pairs: a file of records of kind `pair`.
    """

    pairs: str

    def __call__(self, candidates: Candidates) -> Selection:
        logged: dict[str, list[str]] = {}
        for number, row in read_json_objects(self.pairs):
            texts = [row.get(name) for name in ("chosen", "rejected")]
            prompt = row.get("prompt")
            if not isinstance(prompt, str) or not all(isinstance(text, str) for text in texts):
                raise DataError(
                    f"{self.pairs}:{number}: a pair needs the texts 'prompt', 'chosen' and 'rejected'"
                )
            logged.setdefault(prompt, [str(text) for text in texts])
        if not set(logged) & set(candidates.prompts):
            raise DataError(
                f"{self.pairs} has none of the prompts of {candidates.path}: give the pairs of these prompts"
            )
        dropped: Counter[str] = Counter()
        kept = [index for index, prompt in enumerate(candidates.prompts) if prompt in logged]
        dropped[NO_LOGGED] += len(candidates) - len(kept)
        found = Candidates(
            [candidates.prompts[index] for index in kept],
            [[*candidates.responses[index], *logged[candidates.prompts[index]]] for index in kept],
            {},
            [candidates.fields[index] for index in kept],
            candidates.path,
        )
        return Selection(list(found.lines()), "candidates", +dropped, {})


@register_selector("ranked_pairs")
@dataclasses.dataclass(frozen=True)
class RankedPairs:
    """OSP's pairs: every response against all lower-ranked ones, with the judge's probability as `margin` (arXiv 2405.14103).

    The order is that of the mean probability of winning. Where the judge is intransitive and prefers the lower-ranked response of a pair,
    that one is `chosen`, with its probability; the loss of `osp` is the same for both. The details are a reconstruction, see
    `selection.judged_pairs`.

    Attributes:
      annotation: preferences, de-biased by asking in both orders.
      band: pairs whose probability is closer than this to 1/2 are left out.
      labels: 'soft' keeps the probability; 'argmax' writes 1 for the likelier response; 'sampled' writes 1 for a response drawn with the
        probability. The last two are the hard labels that soft ones are compared with.
      seed: of the drawn labels.
    """

    annotation: str = "self_judge"
    band: float = 0.0
    labels: str = "soft"
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("ranked_pairs", "[0, 0.5]", band=self.band)
        require_one_of("ranked_pairs", ("soft", "argmax", "sampled"), labels=self.labels)

    def __call__(self, candidates: Candidates) -> Selection:
        preferences = candidates.annotation(self.annotation, "preferences").values
        dropped: Counter[str] = Counter()
        usable = _compared_responses(candidates, preferences, dropped)
        size = max((len(kept) for kept in usable), default=0)
        table = np.full((len(usable), size, size), 0.5)
        known = np.zeros(table.shape, bool)
        for index, kept in enumerate(usable):
            chosen = _completed(preferences[index])[np.ix_(kept, kept)]
            known[index, : len(kept), : len(kept)] = np.isfinite(chosen)
            table[index, : len(kept), : len(kept)] = np.nan_to_num(chosen, nan=0.5)
        mask = np.arange(size) < np.array([len(kept) for kept in usable])[:, None]
        if size < 2:
            return Selection([], "pair", +dropped, {})
        ranked = judged_pairs.ranked_pairs(jnp.asarray(table), jnp.asarray(mask), band=self.band)
        first, second, probabilities, weights = map(np.asarray, ranked)
        generator = np.random.default_rng(self.seed)
        lines, below_half = [], 0
        for index, kept in enumerate(usable):
            texts = candidates.responses[index]
            for p in range(first.shape[1]):
                a, b = int(first[index, p]), int(second[index, p])
                if max(a, b) >= len(kept):
                    continue
                draw = generator.random()
                if not known[index, a, b]:
                    dropped[NO_COMPARISON] += 1
                elif not weights[index, p]:
                    dropped[IN_BAND] += 1
                else:
                    probability = float(probabilities[index, p])
                    below_half += probability < 0.5
                    one, other = texts[kept[a]], texts[kept[b]]
                    # The preferred response comes first, so that other readers of the pair see the same order.
                    if probability < (draw if self.labels == "sampled" else 0.5):
                        one, other = other, one
                        probability = 1 - probability
                    if self.labels != "soft":
                        probability = 1.0
                    lines.append(pair_line(candidates, index, one, other, margin=probability))
        measures = pair_measures(lines)
        if lines:
            measures["intransitive"] = below_half / len(lines)
        return Selection(lines, "pair", +dropped, measures)


def _compared_responses(
    candidates: Candidates, preferences: Sequence[np.ndarray], dropped: Counter[str]
) -> list[list[int]]:
    """Returns the usable responses that are compared with at least one other."""
    found = []
    for kept, matrix in zip(usable_responses(candidates, dropped), preferences, strict=True):
        table = np.isfinite(_completed(matrix)[np.ix_(kept, kept)])
        np.fill_diagonal(table, False)
        compared = [k for k, row in zip(kept, table, strict=True) if row.any()]
        dropped[MISSING] += len(kept) - len(compared)
        if kept and not compared:
            dropped[TOO_FEW] += 1
        found.append(compared)
    return found


def _completed(
    preferences: Float[np.ndarray, "responses responses"],
) -> Float[np.ndarray, "responses responses"]:
    """Fills a missing ``P_ij`` with ``1 - P_ji``."""
    return np.where(np.isfinite(preferences), preferences, 1 - preferences.T)


def _padded(
    values: Sequence[np.ndarray], usable: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, "prompts responses"], Bool[np.ndarray, "prompts responses"]]:
    """Returns the values in one array, and a mask of the usable responses."""
    size = max(max((len(row) for row in values), default=1), 1)
    array, mask = np.zeros((len(values), size)), np.zeros((len(values), size), bool)
    for index, kept in enumerate(usable):
        array[index, list(kept)] = values[index][list(kept)]
        mask[index, list(kept)] = True
    return array, mask
