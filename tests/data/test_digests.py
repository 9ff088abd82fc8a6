"""A set of digests is a set, and says where a text was first seen."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.digests import Places


@given(st.lists(st.text(max_size=3)))
def test_it_is_a_set_that_remembers_places(texts):
    places, expected = Places(), {}
    for line, text in enumerate(texts):
        assert places.add(text, f"file{line % 3}", line) == expected.get(text)
        expected.setdefault(text, (f"file{line % 3}", line))
    assert len(places) == len(expected)


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_what_two_sets_share(one, other):
    first, second = Places(), Places()
    for places, numbers in ((first, one), (second, other)):
        for number in numbers:
            places.add(str(number), "f", number)
    shared = sorted(first.shared(second))
    assert shared == [(("f", number), ("f", number)) for number in sorted(one & other)]


def test_a_text_takes_less_than_a_hundred_bytes():
    count = 100_000
    tracemalloc.start()
    places = Places()
    for line in range(count):
        places.add(f"a line of some length, number {line}", "file", line)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places) == count and kept < 100 * count
