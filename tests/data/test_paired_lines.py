"""Two consecutive lines that are one comparison stay together in every batch."""

import json

import numpy as np
import pytest

from jaxalign.data import cache
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError


@pytest.fixture
def make(tmp_path):
    """The cache of a file of triplets; `edit` changes its lines."""

    def made(edit=lambda lines: lines):
        rows = [
            {"prompt": f"prompt {i // 3}", "response": f"answer {i}", "feedback": 1 - i % 2}
            for i in range(20)
        ]
        lines = edit([json.dumps(row) for row in rows])
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
        other = {"prompt": "another", "response": "answer", "feedback": 1}
        (tmp_path / "validation.jsonl").write_text(json.dumps(other) + "\n")
        cache.cache(
            "comparisons", str(tmp_path / "cache"), vocabulary="bytes", duplicates="keep",
            train_file=str(tmp_path / "train.jsonl"),
            validation_file=str(tmp_path / "validation.jsonl"),
            max_input_length=32, max_target_length=32, max_rejected_fraction=0.5,
        )  # fmt: skip
        return TaskCache(tmp_path / "cache")

    return made


def batches(opened, **options):
    settings = {"batch_size": 4, "paired_lines": True, "num_epochs": 2, "drop_remainder": False}
    settings |= {"feature_lengths": {"inputs": 32, "targets": 32}} | options
    return list(make_dataset(opened, "train", DatasetSettings(**settings)))


def lines_of(opened, found):
    data = opened.split("train")
    ids = np.concatenate([batch["example_ids"][:, 0] for batch in found])
    return [data[int(i)].line for i in ids if i >= 0]


def test_a_line_is_followed_by_its_partner_in_shuffled_order(make):
    opened = make()
    lines = lines_of(opened, batches(opened))
    assert all(a % 2 and b == a + 1 for a, b in zip(lines[::2], lines[1::2], strict=True))
    assert sorted(lines[:20]) == sorted(lines[20:]) == list(range(1, 21))
    assert lines[:20] != lines[20:] and lines[::2] != sorted(lines[::2])


def test_a_comparison_with_a_rejected_line_is_left_out(make):
    opened = make(lambda lines: [*lines[:4], lines[4].replace("answer", "answer" * 9), *lines[5:]])
    assert set(lines_of(opened, batches(opened))) == set(range(1, 21)) - {5, 6}


def test_lines_that_are_shifted_are_no_comparisons(make):
    opened = make(lambda lines: lines[1:])
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*better response must come first"):
        batches(opened)


@pytest.mark.parametrize(
    "options,message",
    [({"batch_size": 3}, "BATCH_SIZE 3 is odd"), ({"pack": True}, "PACK = False")],
)
def test_settings_that_would_separate_a_comparison_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        batches(make(), **options)
