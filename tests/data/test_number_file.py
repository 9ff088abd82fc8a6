"""A list of numbers in a file is that list, whatever part of it is in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data import number_file
from jaxalign.data.number_file import NumberFile


@pytest.fixture(autouse=True, scope="module")
def few_in_memory():
    patch = pytest.MonkeyPatch()
    patch.setattr(number_file, "_IN_MEMORY", 3)
    yield
    patch.undo()


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=5)))
def test_numbers_are_read_as_they_were_added(parts):
    numbers = NumberFile("<f4")
    everything = []
    for part in parts:
        numbers.extend(part)
        everything += part
        assert len(numbers) == len(everything)
        assert numbers.read().tolist() == everything
    assert numbers.read().dtype == np.float32
