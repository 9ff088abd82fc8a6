"""A cache folder as an object: damage is told in one line, and a cache that was interrupted leaves nothing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data import cache
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError

LENGTHS = {"inputs": 32, "targets": 40}


@pytest.fixture
def folder(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "response": f"r{i}", "feedback": i % 3} for i in range(40)]
    cache.cache("mine", str(tmp_path / "cache"), train_file=write_lines(rows))
    return tmp_path / "cache"


def read_everything(folder):
    found = TaskCache(folder)
    found.vocabulary()
    settings = DatasetSettings(feature_lengths=LENGTHS, batch_size=8, num_epochs=1, read_threads=0)
    list(make_dataset(found, "train", settings))
    return list(found.split("train"))


def test_metadata_are_read_as_they_were_written(folder, tmp_path):
    metadata = TaskCache(folder).metadata
    (tmp_path / "again").mkdir()
    metadata.write(str(tmp_path / "again"))
    assert CacheMetadata.read(str(tmp_path / "again")) == metadata
    assert metadata.reward_statistics.std > 0
    assert metadata.num_examples["train"] + metadata.num_examples["validation"] == 40


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("limits",), None),
        (("limits", "long_prompts"), "middle"),
        (("limits", "max_input_length"), "many"),
        (("splits",), {}),
        (("splits", "train"), []),
        (("splits", "train", "num_examples"), -1),
        (("splits", "train", "num_examples"), True),
        (("splits", "train", "prompt_lengths", "max"), "long"),
        (("splits", "train", "feedback_range"), {"min": 0}),
        (("reward_statistics", "std"), 0.0),
        (("reward_statistics", "mean"), float("nan")),
        (("fields",), "feedback"),
        (("score_names",), [1]),
        (("fingerprint",), 3),
        (("version",), 1),
        (("kind",), None),
    ],
)
def test_metadata_of_another_shape_are_refused(folder, path, value):
    file = folder / "metadata.json"
    changed = json.loads(file.read_text())
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError) as caught:
        TaskCache(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    if path != ("splits", "train"):
        place.pop(path[-1])
        file.write_text(json.dumps(changed))
        with pytest.raises(DataError):
            TaskCache(folder)


@pytest.mark.parametrize(
    "name", ["metadata.json", "train.array_record", "train.lengths.npy", "validation.array_record"]
)
def test_a_truncated_file_is_run_with_one_line_errors(folder, name):
    content = (folder / name).read_bytes()
    for kept in (0, len(content) // 3, len(content) - 2):
        (folder / name).write_bytes(content[:kept])
        with pytest.raises(DataError) as caught:
            read_everything(folder)
            list(TaskCache(folder).split("validation"))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        # A partial ArrayRecord file may be found out only when the record is read.
    (folder / name).write_bytes(content)
    assert len(read_everything(folder)) == TaskCache(folder).metadata.num_examples["train"]


def test_a_flipped_record_or_length_is_found(folder):
    wanted = [example.targets.tolist() for example in read_everything(folder)]
    for name in ("train.array_record", "train.lengths.npy"):
        content = (folder / name).read_bytes()
        for place in np.random.default_rng(0).integers(0, len(content), 12):
            broken = bytearray(content)
            broken[place] ^= 1
            (folder / name).write_bytes(broken)
            try:
                found = read_everything(folder)
            except DataError as error:
                assert "\n" not in str(error)
            else:
                # What is not read, such as padding between blocks, does not matter.
                assert [example.targets.tolist() for example in found] == wanted
        (folder / name).write_bytes(content)


def test_the_vocabulary_of_a_cache_is_checked(make_cache, tmp_path):
    folder = shutil.copytree(make_cache(), tmp_path / "copy")
    os.remove(folder / "vocabulary.model")
    with pytest.raises(DataError, match="vocabulary of the cache cannot be read"):
        TaskCache(folder).vocabulary()


def test_rows_that_are_too_short_are_named_with_the_lengths_they_need(write_lines, tmp_path):
    """The limit that is hit is the row's, not the prompt's."""
    rows = [{"prompt": "x" * 25, "chosen": "c" * (9 + i), "rejected": "r"} for i in range(20)]
    rows = [row | {"prompt": f"{i:02d}{row['prompt']}"} for i, row in enumerate(rows)]
    folder = str(tmp_path / "pairs")
    cache.cache("pairs", folder, kind="pair", train_file=write_lines(rows))
    found = TaskCache(folder)
    longest = int(found.split("train").lengths()[:, 1].max())

    def packed(**row_lengths):
        settings = DatasetSettings(
            feature_lengths=LENGTHS, batch_size=2, pack=True, row_lengths=row_lengths
        )
        return next(iter(make_dataset(found, "train", settings)))

    with pytest.raises(DataError, match=r"row_lengths\['inputs'\] = 20.*ROW_LENGTHS.*'inputs': 28"):
        packed(inputs=20, targets=60)
    with pytest.raises(DataError, match=rf"{longest} tokens \(responses tog.*'targets': {longest}"):
        packed(inputs=40, targets=longest - 1)
    # Half a row for each response would be too short, but the responses of an example fit together.
    assert packed(inputs=40, targets=longest)["decoder_target_tokens"].shape == (2, longest)


def test_a_split_without_records_is_left_out_and_named_when_it_is_asked_for(write_lines, tmp_path):
    path = write_lines([{"prompt": "a", "response": "b", "feedback": 1}])
    options = {"task": "mine", "cache_dir": str(tmp_path / "c"), "feature_lengths": LENGTHS}
    with pytest.raises(UserError, match=r"no split 'validation'; it has train.*eval_split = ''"):
        TaskData(train_file=path, **options).prepare()
    metadata = TaskData(train_file=path, eval_split="", **options).prepare()
    assert metadata.num_examples == {"train": 1}
    with pytest.raises(UserError, match="no split 'test'"):
        TaskData(eval_split="test", **options).prepare()


def test_fields_of_other_names_are_read(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "r", "label": i % 2 == 0} for i in range(40)]
    options = {"cache_dir": str(tmp_path / "c"), "feature_lengths": LENGTHS}
    names = {"response": "completion", "feedback": "label"}
    data = TaskData(task="mine", train_file=write_lines(rows), fields=names, **options)
    assert data.prepare().reward_statistics.mean > 0
    with pytest.raises(DataError, match="must be written ours=theirs"):
        cache.cache("mine", str(tmp_path / "d"), train_file="x", fields=["completion"])


def test_a_cache_that_another_process_finished_first_is_kept(folder, write_lines, monkeypatch):
    """With the scores that are stored beside it."""
    metadata = TaskCache(folder).metadata
    aside = folder.with_name("aside")
    folder.rename(aside)
    values = np.zeros((metadata.num_examples["train"], 1))
    TaskCache(aside).write_stored("train", "a", values, {})
    unfinished = cache._unfinished_folder

    def slow(output_dir):
        made = unfinished(output_dir)
        aside.rename(folder)
        return made

    monkeypatch.setattr(cache, "_unfinished_folder", slow)
    path = str(folder.with_name("data.jsonl"))
    assert cache.cache("mine", str(folder), train_file=path) == metadata
    assert TaskCache(folder).stored_names("train") == ["a"]


def test_the_rest_of_an_interrupted_cache_is_removed(folder, capsys):
    path = cache._unfinished_folder(str(folder))
    gone = Path(path.replace(f".{os.getpid()}.", ".999999999."))
    gone.mkdir()
    running = Path(cache._unfinished_folder(str(folder)))
    assert not gone.exists() and running.exists() and Path(path).exists()
    assert f"removing {gone.name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tripel"}, "cache.kind is 'tripel'; it must be one of 'triplet', 'pair'"),
        ({"responses_per_example": -2}, "responses_per_example is -2; it must be at least 1"),
        (
            {"max_rejected_fraction": float("nan")},
            r"max_rejected_fraction is nan; it must lie in \[0, 1\]",
        ),
        ({"long_prompts": "x"}, "long_prompts is 'x'; it must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message, write_lines, tmp_path):
    path = write_lines([{"prompt": "a", "response": "b", "feedback": 1}])
    with pytest.raises(UserError, match=message):
        cache.cache("mine", str(tmp_path / "c"), train_file=path, **options)


def test_the_home_folder_is_found(write_lines, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_lines([{"prompt": f"a{i}", "response": "b", "feedback": 1} for i in range(40)])
    cache.cache("mine", "~/here", train_file=path)
    assert (tmp_path / "here" / "metadata.json").exists()
    assert TaskCache("~/here").metadata.name == "mine"
    data = TaskData(task="mine", cache_dir="~/here", feature_lengths=LENGTHS)
    assert data.prepare().name == "mine"
