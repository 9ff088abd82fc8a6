"""The selector of rated single responses."""

import numpy as np
import pytest

from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.selection.selectors import get_selector


def test_every_distinct_response_with_a_score_becomes_a_triplet():
    scores = [np.array([0.5, 1.0, 0.5, np.nan]), np.array([2.0])]
    candidates = Candidates(
        ["p", "q"],
        [["a", "b", "a ", "c"], ["d"]],
        {"judge": Annotation("scores", scores)},
    )
    selection = get_selector("rated")(candidates)
    assert selection.kind == "triplet"
    found = [(line["prompt"], line["response"], line["feedback"]) for line in selection.lines]
    assert found == [("p", "a", 0.5), ("p", "b", 1.0), ("q", "d", 2.0)]
    assert sum(selection.dropped.values()) == 2
    assert selection.measures["mean_feedback"] == pytest.approx(3.5 / 3)
