import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data import cache, cache_writer, examples, sources
from jaxalign.data.cache_metadata import Range
from jaxalign.data.rejections import DataError
from jaxalign.data.split_summary import SplitSummary
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.vocabularies import ByteVocabulary


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows(number, **more):
    return [
        {"prompt": f"p{i}", "response": f"r{i}", "feedback": i % 3} | more for i in range(number)
    ]


def test_exact_token_ids_of_a_known_example(write_lines, tmp_path):
    path = write_lines([{"prompt": "ab", "response": "c", "feedback": "up"}, *rows(20)])
    folder = str(tmp_path / "cache")
    cache.cache("mine", folder, train_file=path)
    found = {e.prompt: e for e in TaskCache(folder).split("train")}
    source = sources.JsonlSource({"train": path}, "triplet")
    split = sources.split_of_prompt("ab", source.split_fractions)
    assert split == "train", "choose another known prompt"
    example = found["ab"]
    assert example.inputs.tolist() == [100, 101, 1]
    assert example.targets.tolist() == [102, 1]
    assert example.target_lengths.tolist() == [2]
    assert example.feedback.tolist() == [1.0]
    assert (example.responses, example.line) == (("c",), 1)


def test_one_file_is_divided_by_prompt_and_nothing_is_lost(write_lines, tmp_path):
    data = [row | {"response": f"{row['response']}{k}"} for row in rows(200) for k in range(2)]
    folder = str(tmp_path / "cache")
    metadata = cache.cache("mine", folder, train_file=write_lines(data))
    prompts = {
        split: {e.prompt for e in TaskCache(folder).split(split)}
        for split in ("train", "validation")
    }
    assert not prompts["train"] & prompts["validation"]
    assert len(prompts["train"]) + len(prompts["validation"]) == 200
    assert sum(metadata.num_examples.values()) == 400
    assert 5 < metadata.splits["validation"].num_prompts < 40


def test_prompts_in_two_files_stop_the_command(write_lines, tmp_path):
    train = write_lines(rows(10), "train.jsonl")
    validation = write_lines(rows(3), "validation.jsonl")
    with pytest.raises(DataError, match="3 prompts are in both 'train' and 'validation'"):
        cache.cache("m", str(tmp_path / "c"), train_file=train, validation_file=validation)
    assert not os.path.exists(tmp_path / "c")


def test_statistics_are_those_of_the_training_split(make_cache):
    folder = make_cache()
    metadata = TaskCache(folder).metadata
    feedback = np.concatenate([e.feedback for e in TaskCache(folder).split("train")])
    assert metadata.reward_statistics.mean == pytest.approx(
        feedback.mean(dtype=np.float64), abs=1e-7
    )
    assert metadata.reward_statistics.std == pytest.approx(feedback.std(dtype=np.float64), abs=1e-7)
    assert metadata.responses_per_example == 1
    assert metadata.fields == ("feedback",)


def test_metadata_say_the_range_of_feedback_and_how_many_pairs_have_no_margin(
    write_lines, tmp_path
):
    pairs = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(60)]
    pairs = [pair | ({"strength": i / 60} if i % 3 else {}) for i, pair in enumerate(pairs)]
    source = sources.JsonlSource(
        {"train": write_lines(pairs)}, "pair", fields={"margin": "strength"}
    )
    folder = str(tmp_path / "pairs")
    vocabulary = ByteVocabulary()
    metadata = cache.cache_source(source, folder, name="pairs", vocabulary=vocabulary)
    assert metadata.noted("without_margin") == 20
    train = metadata.splits["train"]
    assert train.feedback_range == Range(0.0, 1.0)
    assert 0 < train.chosen_feedback_range.min < 0.2
    assert metadata.splits["train"].num_responses == 2 * metadata.num_examples["train"]


def test_every_rejection_is_in_the_side_file_and_the_counts(write_lines, tmp_path):
    bad = [
        {"prompt": "long", "response": "x" * 40, "feedback": 1},
        {"prompt": "p0", "response": "r0", "feedback": 0},
        {"prompt": "empty", "response": "", "feedback": 1},
        "{not json",
        {"prompt": "nan", "response": "r", "feedback": float("nan")},
    ]
    train = write_lines([*rows(50), *bad], "train.jsonl")
    folder = str(tmp_path / "cache")
    options = {"train_file": train, "splits": ["train"], "max_target_length": 16}
    metadata = cache.cache("m", folder, validation_file=train, max_rejected_fraction=0.1, **options)
    counts = metadata.rejected["train"]
    assert counts == {
        "long_response": 1,
        "duplicate": 1,
        "empty_response": 1,
        "invalid_json": 1,
        "nonfinite_feedback": 1,
    }
    assert metadata.num_examples["train"] == 50
    assert metadata.splits["train"].num_read == 55
    entries = read_lines(os.path.join(folder, "rejected.jsonl"))
    assert {(e["line"], e["reason"]) for e in entries} == {
        (51, "long_response"),
        (52, "duplicate"),
        (53, "empty_response"),
        (54, "invalid_json"),
        (55, "nonfinite_feedback"),
    }
    assert all(e["file"] == train for e in entries)


def test_too_many_bad_records_stop_the_command_and_leave_no_cache(write_lines, tmp_path):
    train = write_lines([*rows(18), *["oops"] * 2], "train.jsonl")
    folder = str(tmp_path / "cache")
    with pytest.raises(
        DataError, match=r"2 of 20 records \(10.0%\).*2 invalid_json.*train.jsonl:19"
    ):
        cache.cache("m", folder, train_file=train, validation_file=train, splits=["train"])
    assert not os.path.exists(folder)
    assert len(read_lines(f"{folder}.rejected.jsonl")) == 2
    assert sorted(os.listdir(tmp_path)) == ["cache.rejected.jsonl", "train.jsonl"]


def test_bad_lines_of_a_divided_file_are_counted_once(write_lines, tmp_path):
    train = write_lines([*rows(100), "oops"])
    metadata = cache.cache("m", str(tmp_path / "c"), train_file=train)
    assert metadata.rejected == {"train": {"invalid_json": 1}, "validation": {}}
    assert sum(split.num_read for split in metadata.splits.values()) == 101


def test_a_file_that_is_divided_is_read_once(write_lines, tmp_path, monkeypatch):
    opened = []
    read = sources.json_lines.read_json_lines
    monkeypatch.setattr(
        sources.json_lines, "read_json_lines", lambda *a, **k: opened.append(a) or read(*a, **k)
    )
    for group in (1, 2):
        folder = str(tmp_path / f"c{group}")
        cache.cache("m", folder, train_file=write_lines(rows(99)), responses_per_example=group)
    assert len(opened) == 2


def test_the_allowed_share_of_bad_records_is_that_of_the_whole_task(write_lines, tmp_path):
    train = write_lines(rows(97), "train.jsonl")
    bad = [{"prompt": f"q{i}", "response": "x" * 99 * (i < 3), "feedback": 1} for i in range(4)]
    bad[0]["response"] = "good"
    files = {"train_file": train, "validation_file": write_lines(bad, "validation.jsonl")}
    options = files | {"max_target_length": 16}
    # 3 of 4 in a split, and 3 of 101 in the task.
    metadata = cache.cache("m", str(tmp_path / "c"), max_rejected_fraction=0.03, **options)
    assert metadata.num_examples == {"train": 97, "validation": 1}
    with pytest.raises(DataError, match=r"3 of 101 records \(3.0%\) were rejected"):
        cache.cache("m", str(tmp_path / "d"), max_rejected_fraction=0.029, **options)


def test_unknown_pieces_are_rejected(write_lines, small_vocabulary, tmp_path):
    good = [{"prompt": f"the hotel {i}", "response": "the food"} for i in ("one", "two")]
    train = write_lines([*good, {"prompt": "the", "response": "☃ ☂ ☁"}])
    metadata = cache.cache(
        "m",
        str(tmp_path / "c"),
        kind="seq2seq",
        train_file=train,
        validation_file=train,
        splits=["train"],
        vocabulary=small_vocabulary,
        max_rejected_fraction=0.5,
        max_unknown_fraction=0.4,
    )
    assert metadata.rejected["train"] == {"unknown_pieces": 1}
    assert metadata.reward_statistics is None


@pytest.mark.parametrize(
    ("option", "tokens"), [("truncate", [100, 101, 1]), ("truncate_left", [102, 103, 1])]
)
def test_long_prompts_are_truncated_or_rejected(option, tokens, write_lines, tmp_path):
    train = write_lines([{"prompt": "abcd", "response": "r"}, {"prompt": "a", "response": "r"}])
    options = {
        "kind": "seq2seq",
        "train_file": train,
        "validation_file": train,
        "splits": ["train"],
        "max_input_length": 3,
        "max_rejected_fraction": 0.5,
    }
    metadata = cache.cache("m", str(tmp_path / "a"), long_prompts=option, **options)
    assert metadata.splits["train"].notes == {"truncated_prompts": 1}
    assert TaskCache(str(tmp_path / "a")).split("train")[0].inputs.tolist() == tokens
    metadata = cache.cache("m", str(tmp_path / "b"), long_prompts="reject", **options)
    assert metadata.rejected["train"] == {"long_prompt": 1}


def test_an_identical_cache_is_reused_and_a_different_one_refused(write_lines, tmp_path):
    folder = str(tmp_path / "cache")
    train = write_lines(rows(40))
    first = cache.cache("m", folder, train_file=train)
    changed = os.path.getmtime(os.path.join(folder, "metadata.json"))
    assert cache.cache("m", folder, train_file=train) == first
    assert os.path.getmtime(os.path.join(folder, "metadata.json")) == changed
    other = write_lines(rows(41), "other.jsonl")
    with pytest.raises(DataError, match="already holds a different cache"):
        cache.cache("m", folder, train_file=other)
    assert TaskCache(folder).metadata == first
    second = cache.cache("m", folder, train_file=other, overwrite=True)
    assert second.fingerprint != first.fingerprint
    assert sorted(os.listdir(tmp_path)) == ["cache", "data.jsonl", "other.jsonl"]


def test_a_folder_that_is_no_cache_is_left_alone(write_lines, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is not a cache"):
        cache.cache("m", str(tmp_path / "thesis"), train_file=write_lines(rows(9)), overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_the_vocabulary_travels_with_the_cache(make_cache, tmp_path):
    folder = make_cache()
    moved = str(tmp_path / "moved")
    os.symlink(folder, moved)
    vocabulary = TaskCache(moved).vocabulary()
    example = TaskCache(moved).split("validation")[0]
    assert vocabulary.decode(example.targets) == example.responses[0]
    assert vocabulary.decode(example.inputs) == example.prompt


def test_responses_of_a_prompt_can_share_an_example(write_lines, tmp_path):
    data = [
        {"prompt": f"p{i}", "response": f"r{k}", "feedback": k} for k in range(3) for i in range(30)
    ]
    folder = str(tmp_path / "c")
    metadata = cache.cache("m", folder, train_file=write_lines(data), responses_per_example=3)
    assert metadata.responses_per_example == 3
    assert sum(metadata.num_examples.values()) == 30
    example = TaskCache(folder).split("train")[0]
    assert example.feedback.tolist() == [2, 1, 0]
    assert example.target(1).tolist() == [*ByteVocabulary().encode("r1"), 1]


def test_damaged_records_are_named():
    example = examples.make_example([5, 1], [[6, 1]], [1.0], None, prompt_id=3)
    data = examples.encode_example(example)
    again = examples.decode_example(data)
    assert again.inputs.tolist() == [5, 1]
    assert examples.encode_example(again) == data
    for broken in (data[:-3], b"", b"\x00", data + b"x"):
        with pytest.raises(ValueError, match=r"A record of the\.file is damaged"):
            examples.decode_example(broken, where="the.file")


def test_a_cache_with_a_missing_or_short_file_is_refused(write_lines, tmp_path):
    folder = str(tmp_path / "c")
    cache.cache("m", folder, train_file=write_lines(rows(40)))
    with pytest.raises(DataError, match="has no split 'test'"):
        TaskCache(folder).split("test")
    os.replace(
        os.path.join(folder, "validation.array_record"), os.path.join(folder, "train.array_record")
    )
    with pytest.raises(DataError, match="records, its metadata says"):
        TaskCache(folder).split("train")
    with pytest.raises(DataError, match="is missing"):
        TaskCache(folder).split("validation")
    with pytest.raises(DataError, match="is not a cache"):
        TaskCache(str(tmp_path)).split("train")


def test_reference_scores(write_lines, tmp_path):
    folder = str(tmp_path / "c")
    train = write_lines(rows(40))
    metadata = cache.cache("m", folder, train_file=train)
    number = metadata.num_examples["train"]
    scores = -np.arange(number, dtype=np.float32)[:, None]
    TaskCache(folder).write_stored("train", "sft", scores, {"step": 3})
    again = TaskCache(folder).stored("train", "sft")
    np.testing.assert_array_equal(again.values, scores)
    assert again.info == {"step": 3}
    assert TaskCache(folder).stored_names("train") == ["sft"]
    with pytest.raises(DataError, match=r"has shape \(3, 1\)"):
        TaskCache(folder).write_stored("train", "x", scores[:3], {})
    broken = scores.copy()
    broken[5] = np.nan
    with pytest.raises(DataError, match="NaN or infinite, first for example 5"):
        TaskCache(folder).write_stored("train", "x", broken, {})
    with pytest.raises(DataError, match=r"no stored array 'other'.*it has: sft"):
        TaskCache(folder).stored("train", "other")
    path = os.path.join(folder, "stored", "train.sft.json")
    (description,) = [json.loads(Path(path).read_text())]
    Path(path).write_text(json.dumps(description | {"fingerprint": "0"}))
    with pytest.raises(DataError, match="computed on other data"):
        TaskCache(folder).stored("train", "sft")


def test_a_seqio_task_whose_splits_share_prompts_gets_advice_that_fits_it():
    shared = SplitSummary()
    shared.prompts.add("the same", "data.jsonl", 1)
    summaries = {"train": shared, "validation": shared}
    for by_seqio, advice in ((True, "register 'my_task' with splits"), (False, "train_file")):
        with pytest.raises(DataError, match=advice):
            cache_writer.check_no_straddling(summaries, by_seqio=by_seqio, name="my_task")
