"""Parts of a computation in threads: each runs once, the first of a shape alone, and errors are raised."""

import threading

import pytest

from jaxalign.inference import cpu_threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(cpu_threads, "count", lambda: 2)
    monkeypatch.setattr(cpu_threads, "_compiled", set())


def test_the_first_part_of_a_shape_runs_alone_and_the_others_together():
    done, both = [], threading.Barrier(2)
    others = {"a": threading.Event(), "b": threading.Event()}

    def work(shape, number):
        if number % 3:
            others[shape].set()
            both.wait(timeout=30)
        else:
            # Another part of its shape would start in this time.
            assert not others[shape].wait(timeout=0.2)
            assert len(done) == number
        done.append(number)

    shapes = ["a", "a", "a", "b", "b", "b"]
    cpu_threads.run((shape, lambda s=shape, i=i: work(s, i)) for i, shape in enumerate(shapes))
    assert sorted(done) == list(range(6))


def test_an_error_of_a_part_is_raised():
    def fails():
        raise ValueError("part two")

    with pytest.raises(ValueError, match="part two"):
        cpu_threads.run([("a", lambda: None), ("a", fails), ("a", lambda: None)])
