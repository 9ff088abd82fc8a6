"""SA2's first phase: pseudo-labels that the model finds likely on average, but uncertain under dropout (arXiv 2205.09661)."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from jaxtyping import Bool, Float

from jaxalign.data.candidates import Candidates, read_candidates
from jaxalign.data.rejections import DataError
from jaxalign.errors import require_range
from jaxalign.selection.selectors import Selection, register_selector
from jaxalign.selection.usable import kept_fields, usable_responses

Values = Float[np.ndarray, " responses"]


@dataclasses.dataclass(frozen=True)
class PhaseOne:
    """The result of `phase_one`.

    Attributes:
      selected: a mask of the pseudo-labelled responses.
      highest_loss: the bound on the mean loss.
      lowest_uncertainty: the bound on the uncertainty.
    """

    selected: Bool[np.ndarray, " responses"]
    highest_loss: float
    lowest_uncertainty: float


def phase_one(
    labelled_losses: Values,
    labelled_uncertainties: Values,
    losses: Values,
    uncertainties: Values,
    *,
    trim: tuple[float, float] = (1.0, 99.0),
) -> PhaseOne:
    """Selects responses with a low mean loss and a high uncertainty.

    The bounds are the means of two pools: the labelled responses with those pseudo-labelled ones whose loss is at most the mean. Each
    pool is cut to the values strictly inside its own percentiles first.

    Args:
      labelled_losses, labelled_uncertainties: of the responses with human labels; they may be empty.
      losses: the mean loss per token of every pseudo-labelled response, over passes with dropout.
      uncertainties: the standard deviation over the passes.
      trim: the percentiles; (0, 100) cuts nothing.
    """
    low = losses <= losses.mean() if len(losses) else np.zeros(0, bool)
    highest = _trimmed_mean(np.concatenate([labelled_losses, losses[low]]), trim)
    lowest = _trimmed_mean(np.concatenate([labelled_uncertainties, uncertainties[low]]), trim)
    return PhaseOne((losses <= highest) & (uncertainties >= lowest), highest, lowest)


@register_selector("low_loss_uncertain")
@dataclasses.dataclass(frozen=True)
class LowLossUncertain:
    """The first phase of SA2's selection, as seq2seq records with the fields `loss` and `uncertainty`.

    Attributes:
      loss: the annotation with the mean loss per token over passes with dropout.
      uncertainty: the annotation with the deviation over the passes. The annotator `uncertainty` makes both.
      labelled: candidates with the human-labelled responses and the same annotations; without them the bounds come from the
        pseudo-labelled responses alone.
      control: whether to draw as many responses at random instead, the control of the selection.
      seed: of the control.
      low_percentile, high_percentile: of the pools, see `phase_one`.
    """

    loss: str = "uncertainty.loss"
    uncertainty: str = "uncertainty.deviation"
    labelled: str = ""
    control: bool = False
    seed: int = 0
    low_percentile: float = 1.0
    high_percentile: float = 99.0

    def __post_init__(self) -> None:
        require_range("low_loss_uncertain", "[0, 50)", low_percentile=self.low_percentile)
        require_range("low_loss_uncertain", "(50, 100]", high_percentile=self.high_percentile)

    def __call__(self, candidates: Candidates) -> Selection:
        dropped: Counter[str] = Counter()
        places, losses, uncertainties = self._values(candidates, dropped)
        if self.labelled:
            _, labelled_losses, labelled_uncertainties = self._values(
                read_candidates(self.labelled), Counter()
            )
        else:
            labelled_losses = labelled_uncertainties = np.zeros(0)
        if not len(losses):
            return Selection([], "seq2seq", +dropped, {})
        found = phase_one(
            labelled_losses,
            labelled_uncertainties,
            losses,
            uncertainties,
            trim=(self.low_percentile, self.high_percentile),
        )
        selected = found.selected
        measures = {
            "highest_loss": found.highest_loss,
            "lowest_uncertainty": found.lowest_uncertainty,
            "selected_share": float(selected.mean()),
        }
        if self.control:
            drawn = np.random.default_rng(self.seed).permutation(len(selected))
            selected = np.isin(np.arange(len(selected)), drawn[: int(selected.sum())])
            dropped["response that was not drawn"] += int((~selected).sum())
        else:
            high = losses > found.highest_loss
            dropped["loss above the bound"] += int(high.sum())
            dropped["uncertainty below the bound"] += int((~selected & ~high).sum())
        lines = [
            {
                **kept_fields(candidates, index),
                "prompt": candidates.prompts[index],
                "response": candidates.responses[index][k],
                "loss": float(loss),
                "uncertainty": float(uncertainty),
            }
            for (index, k), loss, uncertainty, chosen in zip(
                places, losses, uncertainties, selected, strict=True
            )
            if chosen
        ]
        return Selection(lines, "seq2seq", +dropped, measures)

    def _values(
        self, candidates: Candidates, dropped: Counter[str]
    ) -> tuple[list[tuple[int, int]], Values, Values]:
        """Returns the usable responses as (prompt, response), their losses and uncertainties."""
        losses = candidates.annotation(self.loss, "scores").values
        uncertainties = candidates.annotation(self.uncertainty, "scores").values
        both = [np.stack(pair, axis=1) for pair in zip(losses, uncertainties, strict=True)]
        usable = usable_responses(candidates, dropped, both, minimum=1)
        places = [(index, k) for index, kept in enumerate(usable) for k in kept]
        values = np.array([both[index][k] for index, k in places]).reshape(-1, 2)
        if (values[:, 1] < 0).any():
            raise DataError(
                f"{candidates.path}: the annotation {self.uncertainty!r} has negative values; a deviation is not negative"
            )
        return places, values[:, 0], values[:, 1]


def _trimmed_mean(values: Values, trim: tuple[float, float]) -> float:
    if trim == (0.0, 100.0):
        return float(values.mean())
    low, high = np.percentile(values, trim)
    inside = values[(values > low) & (values < high)]
    # Few or equal values leave nothing inside.
    return float((inside if len(inside) else values).mean())
