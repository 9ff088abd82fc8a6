"""The selector that takes a human or a model's label for every pair (HyPER, arXiv 2410.19133)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np

from jaxalign.data.candidates import Candidates
from jaxalign.data.rejections import DataError
from jaxalign.errors import UserError, require_one_of, require_range
from jaxalign.selection import label_routing
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import (
    pair_line,
    pair_measures,
    scores_of,
    usable_responses,
)

MODES = ("human", "model", "random", "simulated", "gain")
HUMAN_TIE, MODEL_TIE = "tie of the human labels", "tie of the model's labels"


@register_selector("routed")
@dataclasses.dataclass(frozen=True)
class Routed:
    """Pairs with a human or a model's label each, with the field `is_human`.

    Every prompt needs two responses. A pair that either source calls a tie, or did not label, is left out before routing, so that the
    source never decides which pairs there are. Tags are those of `label_routing.text_tags`, and one for every `group`.

    Attributes:
      mode: 'simulated' or 'gain' by a model of performance; 'random', 'human' and 'model' are what these are compared with.
      human: the annotation with the human labels (scores, or preferences).
      model: the annotation with the model's labels.
      mixes: a JSON file with measured mixes, for 'simulated' and 'gain': see `label_routing.measured_mixes`.
      budget: the number of human labels, or their share if below 1; -1 lets the model of performance choose.
      performance: 'linear' or 'quadratic'.
      ridge: penalty of the regression.
      simulations: the number of simulated mixes.
      seed: of the random and of the simulated mixes.
    """

    mode: str = "simulated"
    human: str = "human"
    model: str = "judge"
    mixes: str = ""
    budget: float = -1.0
    performance: str = "quadratic"
    ridge: float = 1.0
    simulations: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of("routed", MODES, mode=self.mode)
        require_one_of("routed", ("linear", "quadratic"), performance=self.performance)
        require_range("routed", "(0, inf)", ridge=self.ridge)
        require_range("routed", "[1, inf)", simulations=self.simulations)
        if self.budget < 0 and self.budget != -1:
            raise UserError(f"routed.budget is {self.budget:g}; it must be -1 or at least 0")
        if self.mode in ("simulated", "gain") and not self.mixes:
            raise UserError(
                f"selector 'routed' with mode={self.mode} needs mixes=FILE, the measured performance of some mixes"
            )
        if self.mode == "random" and self.budget < 0:
            raise UserError("selector 'routed' with mode=random needs budget=...")

    def __call__(self, candidates: Candidates) -> Selection:
        sources = [scores_of(candidates, name) for name in (self.human, self.model)]
        both = [np.stack(pair, axis=1) for pair in zip(*sources, strict=True)]
        dropped: Counter[str] = Counter()
        places: list[tuple[int, list[int]]] = []
        for index, kept in enumerate(usable_responses(candidates, dropped, both)):
            if not kept:
                continue
            if len(kept) > 2:
                raise DataError(
                    f"{candidates.path}: the prompt {candidates.prompts[index][:60]!r} has {len(kept)} responses, and routing needs two; "
                    "choose two with the selector similar_pairs"
                )
            differences = both[index][kept[0]] - both[index][kept[1]]
            if not differences.all():
                dropped[HUMAN_TIE if differences[0] == 0 else MODEL_TIE] += 1
            else:
                places.append((index, kept))
        if not places:
            return Selection([], "pair", +dropped, {})
        mask = self._mask(candidates, places)
        lines = []
        agreement = 0
        for (index, kept), is_human in zip(places, mask, strict=True):
            wins = both[index][kept[0]] > both[index][kept[1]]
            agreement += wins[0] == wins[1]
            order = kept if wins[0 if is_human else 1] else kept[::-1]
            texts = [candidates.responses[index][k] for k in order]
            lines.append(pair_line(candidates, index, *texts, is_human=bool(is_human)))
        measures = pair_measures(lines) | {
            "human_labels": float(mask.sum()),
            "human_share": float(mask.mean()),
            "agreement": float(agreement / len(places)),
        }
        return Selection(lines, "pair", +dropped, measures)

    def _mask(
        self, candidates: Candidates, places: list[tuple[int, list[int]]]
    ) -> label_routing.Mask:
        number = len(places)
        budget = self._budget(number)
        if self.mode == "random":
            assert budget is not None
            drawn = np.random.default_rng(self.seed).permutation(number)[:budget]
            return np.isin(np.arange(number), drawn)
        if self.mode in ("human", "model"):
            return np.full(number, self.mode == "human")
        tags, names = pair_tags(candidates, places)
        rows = json.loads(_read(self.mixes))
        counts, performance, measured = label_routing.measured_mixes(rows, self.mixes)
        if measured != names:
            raise DataError(
                f"{self.mixes} has {len(measured)} tags, and {candidates.path} has {len(names)} tags or others: measure mixes of the "
                "same pool"
            )
        fitted = label_routing.fit_performance_model(
            counts, performance, kind=self.performance, ridge=self.ridge
        )
        if self.mode == "gain":
            return label_routing.route_by_gain(fitted, tags, budget)
        return label_routing.route_simulated(
            fitted, tags, budget, simulations=self.simulations, seed=self.seed
        )

    def _budget(self, number: int) -> int | None:
        if self.budget < 0:
            return None
        budget = round(self.budget * number) if self.budget < 1 else int(self.budget)
        if budget > number:
            raise DataError(f"routed.budget is {budget} human labels, and there are {number} pairs")
        return budget


def pair_tags(
    candidates: Candidates, places: list[tuple[int, list[int]]]
) -> tuple[label_routing.Tags, list[str]]:
    """Returns the tags of pairs, given as (prompt, two responses), and their names."""
    texts = [[candidates.responses[index][pair[side]] for index, pair in places] for side in (0, 1)]
    tags, names = label_routing.text_tags([candidates.prompts[i] for i, _ in places], *texts)
    groups = [candidates.fields[index].get("group") for index, _ in places]
    more, more_names = label_routing.group_tags([g if g is None else str(g) for g in groups])
    return np.concatenate([tags, more], axis=1), [*names, *more_names]


def _read(path: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        json.loads(text)
    except OSError as error:
        raise DataError(
            f"cannot read the measured mixes {path}: {error.strerror or error}"
        ) from None
    except ValueError:
        raise DataError(f"{path} is not JSON; give the file of measured mixes") from None
    return text
