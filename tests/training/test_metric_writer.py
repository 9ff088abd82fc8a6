"""Metrics on a disk that fills up, and event files that TensorBoard reads."""

import errno
import os

import pytest

from jaxalign.errors import UserError
from jaxalign.training import metric_writing, run_folder, tensorboard
from jaxalign.training.metric_writing import MetricWriter
from jaxalign.training.trackers import Experiment, open_trackers


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run_in_one_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, "train", {"loss": 1.0})
    writer._file.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    message = r"could not write metrics under .*: No space left on device; checkpoints stay"
    for step in range(2, 40):
        with pytest.raises(UserError, match=message):
            writer.write(step, "train", {f"metric{n}": 1.0 for n in range(30)})
    writer.close()


def test_event_files_on_a_full_disk_are_left_out_and_nothing_blocks(tmp_path, monkeypatch, capsys):
    (tracker,) = open_trackers("tensorboard", Experiment(tmp_path, "abc", {}))
    with MetricWriter(tmp_path, trackers=[tracker]) as writer:
        writer.write(1, "train", {"loss": 1.0})
        monkeypatch.setattr(tensorboard._EventFile, "_append", full)
        # Many more values than any queue holds.
        for step in range(2, 40):
            writer.write(step, "train", {f"metric{n}": 1.0 for n in range(30)})
    assert capsys.readouterr().err.count("tracker tensorboard failed") == 1


def test_a_full_disk_at_the_start_is_told_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_writing, "keep_lines_up_to", full)
    with pytest.raises(UserError, match="could not write metrics"):
        MetricWriter(tmp_path)


def test_tensorboard_reads_the_event_files(tmp_path):
    """In the format that tensorflow's own reader checks, checksums included."""
    tf = pytest.importorskip("tensorflow")
    trackers = open_trackers("tensorboard", Experiment(tmp_path, "abc", {}, resume_step=4))
    with MetricWriter(tmp_path, resume_step=4, trackers=trackers) as writer:
        writer.write(5, "train", {"loss": 2.5, "bad": float("nan")})
        writer.write(6, "train", {"loss": 1.5})
    (file,) = (tmp_path / "tensorboard" / "train").iterdir()
    events = list(tf.compat.v1.train.summary_iterator(str(file)))
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == 1 and events[1].step == 5
    found = [(e.step, v.tag, v.simple_value) for e in events[2:] for v in e.summary.value]
    assert found[0] == (5, "loss", 2.5) and found[2] == (6, "loss", 1.5)


def test_a_run_folder_is_local_and_of_one_run(tmp_path):
    for bad, message in (("gs://bucket/run", "mount the bucket"), ("", "MODEL_DIR is empty")):
        with pytest.raises(UserError, match=message):
            run_folder.local_folder(bad)
    with run_folder.open_folder(str(tmp_path / "run")) as folder:
        assert folder == tmp_path / "run" and (folder / run_folder.LOCK_FILE).exists()
    assert not (folder / run_folder.LOCK_FILE).exists()
