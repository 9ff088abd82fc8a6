"""Stated feedback decides which response is better: the same for every kind of record, and for training and evaluation."""

import pytest

from jaxalign.data import cache, pipeline
from jaxalign.data.evaluation_records import read_evaluation_records
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache

GOOD, BAD = "the tin cup serves thai food", "the tin cup is number 7"


def against_the_order(kind, count=60):
    """Records whose better response stands last, with the options that read them."""
    prompts = [f"inform(name=tin cup;id={i})" for i in range(count)]
    if kind == "ranked":
        rows = [{"prompt": p, "responses": [BAD, GOOD], "feedback": [1, 5]} for p in prompts]
    elif kind == "multi":
        rows = [
            {"prompt": p, "responses": [BAD, GOOD], "scores": [{"a": 1}, {"a": 5}]} for p in prompts
        ]
    elif kind == "pair":
        rows = [{"prompt": p, "chosen": BAD, "rejected": GOOD, "margin": -4} for p in prompts]
    else:
        rows = [
            {"prompt": p, "response": response, "feedback": feedback}
            for p in prompts
            for response, feedback in ((BAD, "down"), (GOOD, "up"))
        ]
    return rows, {"kind": kind, "responses_per_example": 2 if kind == "triplet" else 1}


@pytest.mark.parametrize("kind", ["ranked", "multi", "pair", "triplet"])
def test_the_better_response_comes_first_whatever_the_record_s_order(kind, write_lines, tmp_path):
    rows, options = against_the_order(kind)
    path, folder = write_lines(rows), str(tmp_path / "cache")
    metadata = cache.cache("mine", folder, train_file=path, **options)
    for example in TaskCache(folder).split("train"):
        assert example.responses == (GOOD, BAD)
        assert example.feedback[0] > example.feedback[1]
        assert bytes(t - 3 for t in example.target(0)[:-1]).decode() == GOOD
        if example.scores is not None:
            assert example.scores.tolist() == [[5], [1]]
    # Only these kinds say something by their order.
    stated = kind in ("ranked", "pair")
    reordered = sum(metadata.num_examples.values()) if stated else 0
    assert metadata.noted("reordered") == reordered
    for source in (path, folder):
        found = {}
        for record in (
            read_evaluation_records(source, split="train", side_file=str(tmp_path / "rejected"))
            .to_set()
            .feedback
        ):
            found.setdefault(record.response, set()).add(record.feedback)
        assert min(found[GOOD]) > max(found[BAD])


def test_a_negative_margin_is_the_margin_of_the_other_response(write_lines, tmp_path):
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y", "margin": -4},
        {"prompt": "b", "chosen": "x", "rejected": "y", "margin": 4},
    ]
    folder = str(tmp_path / "cache")
    cache.cache(
        "mine",
        folder,
        kind="pair",
        splits=("train",),
        train_file=write_lines(rows),
        validation_file=write_lines(rows, "v"),
    )
    first, second = TaskCache(folder).split("train")
    assert (first.responses, first.feedback.tolist()) == (("y", "x"), [4, 0])
    assert (second.responses, second.feedback.tolist()) == (("x", "y"), [4, 0])


def test_ties_are_counted_and_left_out_where_that_is_asked_for(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"], "feedback": [i % 3, 1]} for i in range(90)]
    folder = str(tmp_path / "cache")
    metadata = cache.cache("mine", folder, kind="ranked", train_file=write_lines(rows))
    assert metadata.noted("ties") == 30
    assert "30 of 90 examples are ties" in metadata.report

    def read(**options):
        settings = pipeline.DatasetSettings(
            feature_lengths={"inputs": 8, "targets": 8},
            batch_size=4,
            num_epochs=1,
            drop_remainder=False,
            standardize=False,
            **options,
        )
        batches = pipeline.make_dataset(TaskCache(folder), "train", settings)
        return [
            tuple(pair)
            for batch in batches
            for pair, mask in zip(
                batch["feedback"][:, 0], batch["response_mask"][:, 0], strict=True
            )
            if mask.any()
        ]

    count = metadata.num_examples["train"]
    assert len(read()) == count
    untied = read(skip_ties=True)
    assert len(untied) == count - metadata.splits["train"].notes["ties"]
    assert all(first > second for first, second in untied)


def test_nothing_but_ties_is_refused(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"], "feedback": [1, 1]} for i in range(40)]
    folder = str(tmp_path / "cache")
    cache.cache("mine", folder, kind="ranked", train_file=write_lines(rows))
    with pytest.raises(DataError, match="are ties"):
        settings = pipeline.DatasetSettings(
            feature_lengths={"inputs": 8, "targets": 8}, batch_size=4, skip_ties=True
        )
        pipeline.make_dataset(TaskCache(folder), "train", settings)
