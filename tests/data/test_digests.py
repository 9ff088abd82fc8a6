"""A set of digests is a set, says where a text was first seen, and keeps a bounded part of itself in memory."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.digests import Places

TEXTS = st.lists(st.text("abc\ud800", max_size=4), max_size=300)


@given(TEXTS)
def test_it_is_a_set_that_remembers_places(texts):
    places, expected = Places(), {}
    for line, text in enumerate(texts):
        assert places.add(text, f"file{line % 3}", line) == expected.get(text)
        expected.setdefault(text, (f"file{line % 3}", line))
    assert len(places) == len(expected)


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_what_two_sets_share(one, other):
    first, second = Places(), Places()
    for places, numbers, file in ((first, one, "f"), (second, other, "g")):
        for number in numbers:
            places.note(str(number), file, number)
    shared = sorted(first.shared(second))
    assert shared == [(("f", number), ("g", number)) for number in sorted(one & other)]


def test_nothing_is_left_in_the_folder(tmp_path):
    places = Places(str(tmp_path))
    places.add("text", "file", 1)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    program = f"""
import resource
from jaxalign.data import digests
digests._SETTINGS = (*digests._SETTINGS[:-1], "cache_size=-1024")
places = digests.Places({str(tmp_path)!r})
def peak_after(lines):
    for line in lines:
        places.add(f"line {{line}}", "file", line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = peak_after(range(60_000))
assert peak_after(range(60_000, 160_000)) - first < 1_000, "100,000 more texts take more than 1 MB"
assert len(places) == 160_000
"""
    subprocess.run([sys.executable, "-c", program], check=True)
