"""A damaged checkpoint is found, set aside by its name and said aloud; the one before it is used."""

import errno
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.runs import manifests
from jaxalign.runs.checkpoints import CHECKPOINTS, restore_params
from jaxalign.runs.description import write_description
from jaxalign.runs.manifests import MANIFEST, find_damage
from jaxalign.training.checkpoint_folder import open_run
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.optimizers import adamw
from jaxalign.training.state import build_transformations, create_state


def make_state(step):
    state = create_state(
        {"policy": {"kernel": jnp.full((64, 64), float(step))}},
        build_transformations({"policy": adamw()}, {}),
    )
    return state.replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def run(tmp_path):
    """A run folder with checkpoints 2, 4 and 6."""
    checkpointer = Checkpointer(tmp_path, CheckpointPolicy(keep_latest=None))
    for step in (2, 4, 6):
        checkpointer.save(make_state(step), {"position": step}, {})
    checkpointer.close()
    return tmp_path


def largest(folder):
    """The file that holds the arrays."""
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def truncate(folder):
    path = largest(folder / "params")
    path.write_bytes(path.read_bytes()[:-7])


def empty(folder):
    largest(folder / "optimizer").write_bytes(b"")


def remove(folder):
    largest(folder / "params").unlink()


def flip_one_bit(folder):
    path = largest(folder / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def tear_the_iterator(folder):
    path = folder / "data" / "metadata"
    path.write_text(path.read_text()[:5])


def tear_what_orbax_says(folder):
    (folder / "_CHECKPOINT_METADATA").write_text('{"item')


def tear_the_manifest(folder):
    (folder / MANIFEST).write_text('{"files": {')


DAMAGES = {
    truncate: r"has \d+ bytes instead of \d+",
    empty: r"optimizer/.* has 0 bytes",
    remove: "is missing",
    flip_one_bit: "the content of params/.* has changed",
    tear_the_iterator: "data/metadata has 5 bytes",
    tear_what_orbax_says: "_CHECKPOINT_METADATA cannot be read",
    tear_the_manifest: "jaxalign_manifest.json cannot be read",
}


def test_every_file_is_listed_and_whole_checkpoints_are_whole(run):
    for step in (2, 4, 6):
        folder = run / CHECKPOINTS / str(step)
        assert (folder / MANIFEST).exists() and find_damage(folder) is None
    for path in folder.rglob("*"):
        # What Orbax adds at the end says nothing.
        if path.is_file() and path not in (folder / MANIFEST, folder / "commit_success.txt"):
            content = path.read_bytes()
            path.write_bytes(content + b"x")
            assert path.relative_to(folder).as_posix() in find_damage(folder)
            path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_checkpoint_before_a_damaged_one_is_used_and_nothing_is_deleted(run, damage, capsys):
    damage(run / CHECKPOINTS / "6")
    checkpointer = open_run(run, CheckpointPolicy(keep_latest=None))
    said = capsys.readouterr().err
    assert f"{run / CHECKPOINTS / '6'} is damaged" in said and "goes on from 4" in said
    assert checkpointer.latest_step() == 4
    shapes = jax.eval_shape(lambda: make_state(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, data = checkpointer.restore(shapes, jax.tree.map(lambda _: device, shapes))
    np.testing.assert_array_equal(state.params["policy"]["kernel"], 4.0)
    assert data == {"position": 4}
    # The step that was lost is done, and saved, again.
    checkpointer.save(make_state(6), {"position": 6}, {})
    checkpointer.close()
    names = {path.name for path in (run / CHECKPOINTS).iterdir()}
    assert {"2", "4", "6", "6.damaged"} <= names
    assert find_damage(run / CHECKPOINTS / "6") is None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_named(run, damage):
    damage(run / CHECKPOINTS / "6")
    assert re.search(DAMAGES[damage], find_damage(run / CHECKPOINTS / "6"))


def test_several_damaged_ones(run):
    truncate(run / CHECKPOINTS / "6")
    remove(run / CHECKPOINTS / "4")
    (run / CHECKPOINTS / "6.damaged").mkdir()
    lines = manifests.set_damaged_aside(run / CHECKPOINTS, [2, 4, 6])
    assert len(lines) == 2 and all("goes on from 2" in line for line in lines)
    assert (run / CHECKPOINTS / "6.damaged.1" / "params").exists()


def test_what_is_left_of_a_checkpoint_whose_deletion_was_interrupted_is_set_aside(run):
    remove(run / CHECKPOINTS / "2")
    shutil.rmtree(run / CHECKPOINTS / "4" / "optimizer")
    (run / CHECKPOINTS / "4" / MANIFEST).unlink()
    lines = manifests.set_damaged_aside(run / CHECKPOINTS, [2, 4, 6])
    assert len(lines) == 2 and all("goes on from 6" in line for line in lines)
    assert {p.name for p in (run / CHECKPOINTS).iterdir()} == {"2.damaged", "4.damaged", "6"}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(run):
    for step in (2, 4, 6):
        truncate(run / CHECKPOINTS / str(step))
    with pytest.raises(UserError, match=r"every checkpoint under .* is damaged"):
        open_run(run, CheckpointPolicy())
    assert sorted(path.name for path in (run / CHECKPOINTS).iterdir()) == ["2", "4", "6"]


def test_damaged_parameters_are_no_start(run):
    truncate(run / CHECKPOINTS / "6")
    with pytest.raises(
        UserError, match=r"checkpoint .*/6 is damaged: params/.* choose another step"
    ):
        restore_params(run, "policy")
    np.testing.assert_array_equal(restore_params(run, "policy", step=4)["kernel"], 4.0)
    # Another item's damage is no reason.
    empty(run / CHECKPOINTS / "4")
    restore_params(run, "policy", step=4)


def test_checkpoints_from_before_manifests_are_read(run):
    for step in (2, 4, 6):
        (run / CHECKPOINTS / str(step) / MANIFEST).unlink()
    assert find_damage(run / CHECKPOINTS / "6") is None
    np.testing.assert_array_equal(restore_params(run, "policy")["kernel"], 6.0)


def test_what_a_killed_process_was_writing_is_cleared_away(run):
    left = run / CHECKPOINTS / "8.orbax-checkpoint-tmp-3"
    (left / "params").mkdir(parents=True)
    checkpointer = open_run(run, CheckpointPolicy(keep_latest=None))
    assert checkpointer.latest_step() == 6
    checkpointer.save(make_state(8), None, {})
    checkpointer.close()
    assert not left.exists() and find_damage(run / CHECKPOINTS / "8") is None


def test_a_disk_that_fills_up_is_run_with_one_line_errors(run, monkeypatch):
    checkpointer = open_run(run, CheckpointPolicy(keep_latest=None))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpointer._manager, "save", full)
    message = (
        r"could not write a checkpoint under .*: No space left.*; the last whole one is step 6"
    )
    with pytest.raises(UserError, match=message):
        checkpointer.save(make_state(8), None, {})
    checkpointer.close()


def test_what_cannot_be_read_for_a_while_is_not_damaged(run, monkeypatch):
    """A file system that fails says nothing about the checkpoint; it stays where it is."""

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifests, "_crc", fail)
    folder = run / CHECKPOINTS
    steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    with pytest.raises(
        UserError, match=r"cannot be read .Input/output error.; nothing was changed"
    ):
        manifests.set_damaged_aside(folder, steps)
    assert all((folder / str(step)).is_dir() for step in steps)


def exchange(run, one, other):
    folder = run / CHECKPOINTS
    (folder / str(one)).rename(folder / "kept")
    (folder / str(other)).rename(folder / str(one))
    (folder / "kept").rename(folder / str(other))


def describe(run, **content):
    write_description(run, {"networks": {}, "run_id": "abc", "manifests": True} | content)


def test_exchanged_and_renamed_steps_are_noticed(run):
    exchange(run, 2, 6)
    assert find_damage(run / CHECKPOINTS / "6") == "it is the checkpoint of step 2"
    with pytest.raises(UserError, match="is damaged: it is the checkpoint of step 2"):
        restore_params(run, "policy", step=6)
    (run / CHECKPOINTS / "4").rename(run / CHECKPOINTS / "5")
    with pytest.raises(UserError, match="is damaged: it is the checkpoint of step 4"):
        restore_params(run, "policy", step=5)


def test_a_checkpoint_of_another_run_is_noticed(tmp_path, run):
    checkpointer = Checkpointer(tmp_path / "other", CheckpointPolicy())
    checkpointer.save(make_state(6), None, {"run_id": "theirs"})
    checkpointer.close()
    describe(tmp_path / "other", run_id="theirs")
    restore_params(tmp_path / "other", "policy")
    describe(tmp_path / "other", run_id="ours")
    message = "it is a checkpoint of the run theirs, and this folder is of the run ours"
    with pytest.raises(UserError, match=message):
        restore_params(tmp_path / "other", "policy")


def test_a_manifest_that_is_gone_is_noticed(run, capsys):
    describe(run)
    (run / CHECKPOINTS / "6" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing, which lists its files"):
        restore_params(run, "policy")
    open_run(run, CheckpointPolicy(keep_latest=None)).close()
    assert "goes on from 4" in capsys.readouterr().err
    assert (run / CHECKPOINTS / "6.damaged").is_dir()


def test_the_step_in_the_metadata_is_compared(run):
    checkpointer = Checkpointer(run, CheckpointPolicy(keep_latest=None))
    assert checkpointer.metadata(4)["step"] == 4
    checkpointer.close()


def test_only_the_newest_damaged_checkpoint_is_kept(run, capsys):
    for name in ("1.damaged", "3.damaged", "3.damaged.1"):
        (run / CHECKPOINTS / name).mkdir()
    truncate(run / CHECKPOINTS / "6")
    open_run(run, CheckpointPolicy(keep_latest=None)).close()
    said = capsys.readouterr().err
    kept = {path.name for path in (run / CHECKPOINTS).iterdir()}
    assert kept == {"2", "4", "6.damaged"}
    for name in ("1.damaged", "3.damaged", "3.damaged.1"):
        assert f"removed {run / CHECKPOINTS / name}, an older damaged checkpoint" in said


def test_what_killed_processes_left_is_removed_and_nothing_else(run, capsys):
    left = [run / ".best.json.0a1b2c3d.partial", run / CHECKPOINTS / "1.deleted"]
    left[0].write_text("{")
    (left[1] / "params").mkdir(parents=True)
    others = [run / name for name in (".note.partial", "a.0a1b2c3d.partial", "x.deleted")]
    others.append(run / CHECKPOINTS / "old.deleted")
    for path in others:
        path.mkdir()
    open_run(run, CheckpointPolicy(keep_latest=None)).close()
    said = capsys.readouterr().err
    for path in left:
        assert not path.exists() and f"removed {path}, which a killed process left" in said
    assert all(path.exists() for path in others)
