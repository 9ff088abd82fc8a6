"""A teacher's tokens beside a cache stand at the positions they were computed for, however a batch is laid out."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data import cache, stored_fields
from jaxalign.data.examples import best_response
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives import distillation

LENGTHS = {"inputs": 32, "targets": 40}
PACKED = {
    "pack": True,
    "max_examples_per_row": 3,
    "row_lengths": {"inputs": 70, "targets": 200},
}
K = 2


def numbered(folder, split="train", name="teacher"):
    """Token t of the split has the ids 2 t and 2 t + 1; examples are written in another order than they are stored in."""
    writer = TaskCache(folder).teacher_tokens_writer(split, name, K)
    lengths = TaskCache(folder).split(split).lengths()[:, 1]
    starts = np.cumsum(lengths) - lengths
    for some in np.array_split(np.arange(len(lengths))[::-1], 3):
        tokens = np.concatenate([starts[i] + np.arange(lengths[i]) for i in some])
        ids = K * tokens[:, None] + np.arange(K)
        writer.write(list(some), ids, -1e-3 * ids)
    writer.close({"run": "x"})
    return starts


@pytest.mark.parametrize(
    "options",
    [{}, PACKED, {"best_only": True}, PACKED | {"best_only": True}, {"local_rows": [5, 2]}],
    ids=["rows", "packed", "best", "best_packed", "local_rows"],
)
def test_every_position_has_the_tokens_that_were_stored_for_it(make_cache, options):
    folder = make_cache("ranked")
    starts = numbered(folder)
    examples = list(TaskCache(folder).split("train"))
    kind = TaskCache(folder).metadata.kind
    seen = 0
    rows = options.get("local_rows")
    settings = DatasetSettings(
        feature_lengths=LENGTHS,
        batch_size=8,
        num_epochs=1,
        drop_remainder=False,
        stored={"teacher_top": "teacher"},
        **{name: value for name, value in options.items() if name != "local_rows"},
    )
    for batch in make_dataset(TaskCache(folder), "train", settings, local_rows=rows):
        at = batch["decoder_segment_ids"] > 0
        assert batch["teacher_top_ids"].shape == (*at.shape, K)
        assert batch["teacher_top_ids"].dtype == np.int32
        assert not batch["teacher_top_ids"][~at].any()
        assert not batch["teacher_top_log_probs"][~at].any()
        for row, indices in enumerate(batch["example_ids"]):
            expected = []
            for index in indices[indices >= 0]:
                every = starts[index] + np.arange(len(examples[index].targets))
                best = examples[index].target_slice(best_response(examples[index], kind))
                expected.append(every[best] if "best_only" in options else every)
            tokens = np.concatenate([np.zeros(0, int), *expected])
            found = batch["teacher_top_ids"][row][at[row]]
            np.testing.assert_array_equal(found, K * tokens[:, None] + np.arange(K))
            log_probs = batch["teacher_top_log_probs"][row][at[row]]
            np.testing.assert_allclose(log_probs, -1e-3 * found, rtol=1e-6)
            seen += len(indices[indices >= 0])
    assert seen == len(examples) or "local_rows" in options


def test_the_fields_are_those_that_the_objective_reads():
    policy = Policy(
        T5Config(
            vocab_size=8,
            emb_dim=4,
            num_heads=1,
            head_dim=4,
            mlp_dim=4,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
    )
    assert distillation.Distillation(policy=policy, source="stored").required_fields() == (
        "teacher_top_ids",
        "teacher_top_log_probs",
    )
    stored_fields.check_stored_fields({"teacher_top": "x"})


@pytest.fixture
def small(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "response": "r" * i, "feedback": i} for i in range(1, 5)]
    folder = str(tmp_path / "cache")
    cache.cache("mine", folder, train_file=write_lines(rows))
    return folder


def test_an_unknown_name_is_refused_with_those_there_are(small):
    numbered(small, name="one")
    numbered(small, name="two")
    assert TaskCache(small).teacher_tokens("train", "one").info == {"run": "x"}
    with pytest.raises(DataError, match=r"no teacher tokens 'three' .*one, two.*top_tokens=K"):
        TaskCache(small).teacher_tokens("train", "three")
    with pytest.raises(DataError, match="no split 'test'"):
        TaskCache(small).teacher_tokens_writer("test", "one", K)


@pytest.mark.parametrize("name", ["../escaped", "a/b", ""])
def test_a_name_is_no_path(small, name):
    with pytest.raises(DataError, match="letters, digits"):
        TaskCache(small).teacher_tokens("train", name)


def test_what_is_not_a_distribution_or_not_of_these_examples_is_refused(small):
    writer = TaskCache(small).teacher_tokens_writer("train", "bad", K)
    length = int(TaskCache(small).split("train").lengths()[0, 1])
    ids = np.zeros((length, K), np.int32)
    for bad in (np.nan, np.inf, 0.5):
        with pytest.raises(DataError, match="finite and at most 0"):
            writer.write([0], ids, np.full(ids.shape, bad))
    with pytest.raises(DataError, match="target tokens"):
        writer.write([0], ids[:-1], -np.ones((length - 1, K)))
    writer.write([0], ids, -np.ones(ids.shape))
    with pytest.raises(DataError, match=r"examples have no teacher tokens"):
        writer.close({})
    with pytest.raises(DataError, match="it has: none"):
        TaskCache(small).teacher_tokens("train", "bad")


def test_a_disk_without_room_is_told_and_nothing_is_left(small, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"no room for 0 MiB of teacher tokens: No space left"):
        TaskCache(small).teacher_tokens_writer("train", "big", K)
    assert os.listdir(Path(small) / "teacher_tokens") == []


def test_an_error_on_the_way_leaves_the_set_that_was_there(small):
    numbered(small)
    writer = TaskCache(small).teacher_tokens_writer("train", "teacher", K + 1)
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert TaskCache(small).teacher_tokens("train", "teacher").count == K
    assert len(os.listdir(Path(small) / "teacher_tokens")) == 3


def test_tokens_of_other_data_are_refused(small):
    numbered(small)
    info = Path(small) / "teacher_tokens" / "train.teacher.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fingerprint": "other"}))
    with pytest.raises(DataError, match="other data"):
        TaskCache(small).teacher_tokens("train", "teacher")


def test_damaged_arrays_are_refused(small):
    numbered(small)
    path = Path(small) / "teacher_tokens" / "train.teacher.log_probs.npy"
    for broken in (np.load(path)[:-1], np.asarray([{}], dtype=object)):
        np.save(path, broken, allow_pickle=True)
        with pytest.raises(DataError, match=r"log_probs\.npy is damaged"):
            TaskCache(small).teacher_tokens("train", "teacher")
