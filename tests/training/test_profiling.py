"""Traces of steps begin and end where they are asked for, whatever happens between."""

import jax
import jax.numpy as jnp
import pytest

from jaxalign.errors import UserError
from jaxalign.training.profiling import FOLDER, Profile, parse_steps


@pytest.mark.parametrize(
    ("text", "steps"), [("", None), ("7", (7, 7)), ("10-12", (10, 12)), (" 3-3 ", (3, 3))]
)
def test_steps(text, steps):
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["0-3", "5-2", "a", "3-", "-3", "1,2"])
def test_other_steps_are_refused(text):
    with pytest.raises(UserError, match="such as 10-12"):
        parse_steps(text)


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def _run(profile, steps):
    seen = []
    for step in steps:
        profile.before(step)
        seen.append(profile._open)
        profile.after(step, jnp.ones(()))
    return seen


def test_the_steps_between_are_traced(tmp_path, calls):
    assert _run(Profile(tmp_path, (3, 4)), range(1, 7)) == [False, False, True, True, False, False]
    assert calls == [str(tmp_path / FOLDER), "stop"]


def test_a_run_that_goes_on_traces_the_rest_and_one_that_ends_writes_what_it_has(tmp_path, calls):
    profile = Profile(tmp_path, (3, 10))
    assert _run(profile, range(5, 7)) == [True, True]
    profile.close()
    profile.close()
    assert calls == [str(tmp_path / FOLDER), "stop"]


def test_a_trace_is_written(tmp_path):
    profile = Profile(tmp_path, (1, 1))
    profile.before(1)
    profile.after(1, jnp.ones(3) + 1)
    assert [path for path in (tmp_path / FOLDER).rglob("*") if path.is_file()]
