"""JPO's comparisons between prompts and their label-matched controls."""

from collections import Counter

import numpy as np
import pytest

from jaxalign.selection.selectors import get_selector


@pytest.fixture
def rated(make):
    generator = np.random.default_rng(0)
    return make({"judge": ("scores", generator.integers(1, 7, size=(40, 3)))})


def comparisons(selection):
    lines = selection.lines
    return [
        ((w["id"], w["response"]), (v["id"], v["response"]))
        for w, v in zip(lines[::2], lines[1::2], strict=True)
    ]


def score(candidates, place):
    index, text = place
    return candidates.annotations["judge"].values[index][int(text[1:])]


@pytest.mark.parametrize("within,joint", [(20, 0), (20, 20), (40, 0), (0, 20)])
def test_the_numbers_of_labels_are_exact_and_the_winner_is_first(rated, within, joint):
    found = get_selector(f"joint_pairs:within={within},joint={joint}")(rated)
    pairs = comparisons(found)
    assert sum(w[0] == v[0] for w, v in pairs) == within
    assert sum(w[0] != v[0] for w, v in pairs) == joint
    assert all(score(rated, w) > score(rated, v) for w, v in pairs)
    assert [line["feedback"] for line in found.lines] == [1.0, 0.0] * (within + joint)
    assert len({frozenset(pair) for pair in pairs}) == within + joint


def test_arms_share_their_labels(rated):
    small = comparisons(get_selector("joint_pairs:within=20,joint=20")(rated))
    large = comparisons(get_selector("joint_pairs:within=40,joint=30")(rated))
    assert set(small) < set(large)


def test_every_prompt_is_compared_with_others_equally_often(rated):
    # One round is a cycle over all 40 prompts; some of its comparisons are ties.
    found = get_selector("joint_pairs:within=0,joint=25")(rated)
    games = Counter(place[0] for pair in comparisons(found) for place in pair)
    assert max(games.values()) <= 2


def test_ties_and_small_differences_are_counted(rated):
    found = get_selector("joint_pairs:min_margin=3,within=-1,joint=5")(rated)
    assert found.dropped["tie"] > 0 and found.dropped["margin below min_margin"] > 0
    assert all(score(rated, w) - score(rated, v) >= 3 for w, v in comparisons(found))
