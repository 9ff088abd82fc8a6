"""A set of digests is a set, says where a text was first seen, and keeps a bounded part of itself in memory."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data import digests
from jaxalign.data.digests import Places

TEXTS = st.lists(st.text("abc", max_size=4), max_size=300)


@pytest.fixture(autouse=True, params=[4, 1 << 15], ids=["in_files", "in_memory"], scope="module")
def in_memory(request):
    """With 4 texts in memory, small sets consist of many runs, pages and blocks."""
    patch = pytest.MonkeyPatch()
    if request.param == 4:
        for name, value in {"_IN_MEMORY": 4, "_SHORT": 8, "_PAGE": 3, "_CHUNK": 5}.items():
            patch.setattr(digests, name, value)
    yield
    patch.undo()


@given(TEXTS)
def test_it_is_a_set_that_remembers_places(texts):
    places, expected = Places(), {}
    for line, text in enumerate(texts):
        assert places.add(text, f"file{line % 3}", line) == expected.get(text)
        expected.setdefault(text, (f"file{line % 3}", line))
    assert len(places) == len(expected)


@given(TEXTS)
def test_noted_texts_are_counted_once_and_found_at_their_first_place(texts):
    places, first = Places(), {}
    for line, text in enumerate(texts):
        places.note(text, "f", line)
        first.setdefault(text, line)
    assert len(places) == len(first)
    assert {text: places.add(text, "g", 0) for text in first} == {
        text: ("f", line) for text, line in first.items()
    }


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_what_two_sets_share(one, other):
    first, second = Places(), Places()
    for places, numbers in ((first, one), (second, other)):
        for number in numbers:
            places.note(str(number), "f", number)
    shared = sorted(first.shared(second))
    assert shared == [(("f", number), ("f", number)) for number in sorted(one & other)]


def test_equal_halves_of_digests_are_told_apart_on_the_next_page_too(monkeypatch):
    monkeypatch.setattr(digests, "_PAGE", 2)
    run = digests._Run.of(
        [
            [
                digests.np.array(column, "<u8")
                for column in ([1, 7, 7, 7, 9], [0, 1, 2, 3, 0], range(5))
            ]
        ],
        None,
    )
    assert [run.find(7, low) for low in (0, 1, 2, 3, 4)] == [None, 1, 2, 3, None]
    assert (run.find(0, 0), run.find(1, 0), run.find(9, 0), run.find(10, 0)) == (None, 0, 4, None)


def test_memory_does_not_grow_with_the_number_of_texts(monkeypatch):
    for name, value in {"_IN_MEMORY": 256, "_SHORT": 1024, "_PAGE": 512, "_CHUNK": 1 << 16}.items():
        monkeypatch.setattr(digests, name, value)
    count = 20_000
    tracemalloc.start()
    places = Places()
    for line in range(count):
        places.note(f"a line of some length, number {line}", "file", line)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places) == count and kept < 10 * count
