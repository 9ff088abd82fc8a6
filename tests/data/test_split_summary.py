"""The statistics of a split are those of numpy to the last bit, although its numbers are spilled to files or counted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data import spilled_numbers
from jaxalign.data.spilled_numbers import SpilledNumbers, counted_mean, counted_percentiles

PERCENTS = (0, 5, 50, 90, 95, 99, 100)
FEEDBACK = st.lists(
    st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -0.0, 1.0, -3.5]), min_size=1
)


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    # A multiple of 128, the length of the blocks of numpy's sums.
    patch = pytest.MonkeyPatch()
    patch.setattr(spilled_numbers, "_CHUNK", 128)
    yield
    patch.undo()


@given(FEEDBACK, st.integers(1, 9))
def test_statistics_of_spilled_numbers(values, repeats):
    values = values * repeats
    spilled, array = SpilledNumbers("<f4"), np.array(values, np.float64)
    for value in values:
        spilled.extend([value])
    assert len(spilled) == len(values)
    assert np.concatenate([*spilled.chunks()]).tolist() == values
    assert spilled.mean() == array.mean()
    assert spilled.std() == array.std()
    assert spilled.percentiles(PERCENTS) == np.percentile(array, PERCENTS).tolist()


@pytest.mark.parametrize("count", [127, 128, 129, 1000, 70_001])
def test_sums_are_rounded_like_those_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    spilled = SpilledNumbers("<f4")
    spilled.extend(values.tolist())
    assert spilled.mean() == values.astype(np.float64).mean()
    assert spilled.std() == values.astype(np.float64).std()


@given(st.lists(st.integers(1, 40), min_size=1))
def test_statistics_of_counted_numbers(numbers):
    counts = Counter(numbers)
    assert counted_mean(counts) == np.mean(numbers)
    assert counted_percentiles(counts, PERCENTS) == np.percentile(numbers, PERCENTS).tolist()
