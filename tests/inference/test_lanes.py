"""Parts of a computation in threads: each runs once, the first of a shape alone, and errors are raised."""

import threading

import pytest

from jaxalign.inference import lanes


@pytest.fixture(autouse=True)
def two_lanes(monkeypatch):
    monkeypatch.setattr(lanes, "count", lambda: 2)
    monkeypatch.setattr(lanes, "_compiled", set())


def test_the_first_part_of_a_shape_runs_alone_and_the_others_together():
    running, together, lock = [0], [], threading.Lock()
    both = threading.Barrier(2)

    def work(first):
        with lock:
            running[0] += 1
            together.append(running[0])
        if not first:
            both.wait(timeout=30)
        with lock:
            running[0] -= 1

    shapes = ["a", "a", "a", "b", "b", "b"]
    lanes.run((shape, lambda first=i % 3 == 0: work(first)) for i, shape in enumerate(shapes))
    assert together.count(1) + together.count(2) == 6
    assert together[0] == 1 and together[3] == 1


def test_an_error_of_a_part_is_raised():
    def fails():
        raise ValueError("part two")

    with pytest.raises(ValueError, match="part two"):
        lanes.run([("a", lambda: None), ("a", fails), ("a", lambda: None)])
