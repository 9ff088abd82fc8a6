"""Progress counts what is done, and passes items on as they are."""

import pytest

from jaxalign.parallel import progress as module
from jaxalign.parallel.progress import progress


@pytest.fixture
def shown(monkeypatch, capsys):
    """Standard error, on which progress is shown without delay."""
    monkeypatch.setattr(module, "_FILE", 0.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return lambda: capsys.readouterr().err


def test_items_pass_in_order_and_their_units_are_counted(shown):
    assert list(progress([(2, "a"), (3, "b")], 5, "generating", "prompt")) == ["a", "b"]
    lines = shown().replace("\r", "\n").splitlines()
    assert any("generating" in line and "2/5" in line for line in lines)


def test_short_computations_show_nothing(capsys):
    assert list(progress([(1, "a")], 1, "generating", "prompt")) == ["a"]
    assert capsys.readouterr().err == ""


def test_items_are_made_when_they_are_asked_for(shown):
    made = []

    def items():
        for number in range(3):
            made.append(number)
            yield 1, number

    found = progress(items(), None, "caching", "record")
    assert next(found) == 0 and made == [0]
    found.close()


def test_other_processes_show_nothing(shown, monkeypatch):
    monkeypatch.setattr("jaxalign.parallel.distributed.is_primary_process", lambda: False)
    assert list(progress([(1, "a")], 1, "generating", "prompt")) == ["a"]
    assert shown() == ""
