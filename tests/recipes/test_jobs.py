"""Jobs run once, in the order of their needs, and continue after an interruption."""

import subprocess
import sys

import pytest

from jaxalign.recipes import jobs as running
from jaxalign.recipes.jobs import Job, read_result, run_workers, work


def _job(name, calls, needs=(), fails=False):
    def run(folder):
        calls.append(name)
        if fails:
            raise ValueError("broken")
        return {"value": len(calls)}

    return Job(name, run, needs)


def test_jobs_run_after_what_they_need(tmp_path):
    calls = []
    work(tmp_path, [_job("b", calls, ("a",)), _job("a", calls)])
    assert calls == ["a", "b"]
    assert read_result(tmp_path, "b")["value"] == 2


def test_finished_jobs_are_not_run_again(tmp_path):
    calls = []
    work(tmp_path, [_job("a", calls)])
    work(tmp_path, [_job("a", calls), _job("b", calls, ("a",))])
    assert calls == ["a", "b"]


def test_a_failure_stops_only_the_jobs_that_need_it(tmp_path):
    calls = []
    jobs = [
        _job("bad", calls, fails=True),
        _job("after", calls, ("bad",)),
        _job("long after", calls, ("after",)),
        _job("other", calls),
    ]
    with pytest.raises(RuntimeError, match="bad"):
        work(tmp_path, jobs)
    assert calls == ["bad", "other"]


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "claim").write_text(str(child.pid))
    calls = []
    work(tmp_path, [_job("a", calls)])
    assert calls == ["a"]


def test_only_the_requested_jobs_and_their_needs_run(tmp_path):
    calls = []
    jobs = [_job("a", calls), _job("b", calls, ("a",)), _job("c", calls)]
    run_workers(jobs, tmp_path, 1, only="b")
    assert calls == ["a", "b"]


def test_a_job_is_claimed_until_its_result_is_there(tmp_path, monkeypatch):
    claimed = []
    write = running.files.write_text

    def checked(path, text):
        claimed.append((tmp_path / "a" / "claim").exists())
        write(path, text)

    monkeypatch.setattr(running.files, "write_text", checked)
    work(tmp_path, [_job("a", [])])
    assert claimed == [True]
    assert not (tmp_path / "a" / "claim").exists()
