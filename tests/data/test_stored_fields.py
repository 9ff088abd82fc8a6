"""Numbers that travel with an example: arrays stored beside the cache, and the feedback of reference samples in the records."""

import dataclasses
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest

from jaxalign.data import cache, derived, examples, rejections, sources, stored_fields, validation
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.records import Record, parse_record
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.selection import from_feedback

LENGTHS = {"inputs": 32, "targets": 40}
PACKED = {
    "pack": True,
    "max_examples_per_row": 3,
    "row_lengths": {"inputs": 70, "targets": 200},
}


def dataset(folder, split="train", **options):
    options = {"feature_lengths": LENGTHS, "batch_size": 8, "num_epochs": 1} | options
    rows = options.pop("local_rows", None)
    return make_dataset(TaskCache(folder), split, DatasetSettings(**options), local_rows=rows)


def cached(write_lines, tmp_path, rows, name="cache", **options):
    folder = str(tmp_path / name)
    metadata = cache.cache("mine", folder, train_file=write_lines(rows, f"{name}.jsonl"), **options)
    return folder, metadata


def triplets(number, samples):
    """Feedback 0, 1, 2, ...; the reference samples of prompt i have the feedback samples(i)."""
    return [
        {"prompt": f"p{i}", "response": f"r{i}", "feedback": i, "reference_feedback": samples(i)}
        for i in range(number)
    ]


class TestStoredArrays:
    @pytest.mark.parametrize("options", [{}, PACKED])
    def test_every_field_follows_its_example(self, make_cache, options):
        folder = make_cache("ranked")
        shape = (len(TaskCache(folder).split("train")), 3)
        generator = np.random.default_rng(0)
        arrays = {
            field: generator.normal(
                size=(*shape, 4) if stored_fields.FIELDS[field].shape == "vector" else shape
            )
            for field in stored_fields.ARRAY_FIELDS
        }
        assert {array.ndim for array in arrays.values()} == {2, 3}
        for field, array in arrays.items():
            TaskCache(folder).write_stored("train", f"{field}-x", array, {"unit": "none"})
        stored = {field: f"{field}-x" for field in arrays}
        seen = 0
        for batch in dataset(folder, stored=stored, drop_remainder=False, **options):
            present = batch["response_mask"] > 0
            for field, array in arrays.items():
                assert batch[field].dtype == np.float32
                assert batch[field].shape == present.shape + array.shape[2:]
                assert (batch[field][~present] == 0).all()
                for row, p in np.argwhere(batch["example_ids"] >= 0):
                    expected = array[batch["example_ids"][row, p]].astype(np.float32)
                    expected[~present[row, p]] = 0
                    np.testing.assert_array_equal(batch[field][row, p], expected)
            seen += int((batch["example_ids"] >= 0).sum())
        assert seen == shape[0]

    def test_log_probabilities_and_other_arrays_share_their_names(self, make_cache):
        folder = make_cache()
        number = len(TaskCache(folder).split("train"))
        scores = np.arange(number, dtype=np.float32)[:, None]
        TaskCache(folder).write_stored("train", "other-policy", scores, {})
        (batch,) = dataset(
            folder, batch_size=number, stored={"margin_log_probs": "other-policy"}, shuffle=False
        )
        np.testing.assert_array_equal(batch["margin_log_probs"][:, 0], scores)
        assert "reference_log_probs" not in batch

    def test_an_unknown_field_is_refused_with_the_known_ones(self, make_cache):
        with pytest.raises(
            DataError, match=r"batch field 'rewards'; known: advantages, margin_log_probs"
        ):
            dataset(make_cache(), stored={"rewards": "x"})

    def test_an_unknown_name_is_refused_with_those_there_are(self, write_lines, tmp_path):
        folder, metadata = cached(write_lines, tmp_path, triplets(30, lambda i: [0]))
        with pytest.raises(
            DataError, match=r"no stored array 'a' for the split 'train' \(it has: none\)"
        ):
            dataset(folder, stored={"advantages": "a"})
        values = np.zeros((metadata.num_examples["train"], 1))
        TaskCache(folder).write_stored("train", "b", values, {})
        with pytest.raises(DataError, match=r"'a' for the split 'train' \(it has: b\)"):
            dataset(folder, stored={"advantages": "a"})
        with pytest.raises(DataError, match=r"'b' for the split 'validation' \(it has: none\)"):
            dataset(folder, "validation", stored={"advantages": "b"})

    def test_values_that_are_not_finite_or_of_other_data_are_refused(self, write_lines, tmp_path):
        folder, metadata = cached(write_lines, tmp_path, triplets(30, lambda i: [0]))
        number = metadata.num_examples["train"]
        values = np.zeros((number, 1))
        values[3] = np.inf
        with pytest.raises(DataError, match=r"array 'a' has 1 values that are NaN or infinite.* 3"):
            TaskCache(folder).write_stored("train", "a", values, {})
        with pytest.raises(DataError, match=rf"has shape \(2, 1\).*needs \({number}, 1\)"):
            TaskCache(folder).write_stored("train", "a", values[:2], {})
        TaskCache(folder).write_stored("train", "a", np.zeros((number, 1)), {"units": "rewards"})
        assert TaskCache(folder).stored("train", "a").info == {"units": "rewards"}
        path = Path(folder) / "stored" / "train.a.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0"}))
        with pytest.raises(DataError, match="computed on other data"):
            dataset(folder, stored={"advantages": "a"})

    def test_a_number_is_not_taken_for_a_vector(self, write_lines, tmp_path):
        folder, metadata = cached(write_lines, tmp_path, triplets(30, lambda i: [0]))
        number = metadata.num_examples["train"]
        TaskCache(folder).write_stored("train", "wide", np.zeros((number, 1, 3)), {})
        TaskCache(folder).write_stored("train", "flat", np.zeros((number, 1)), {})
        with pytest.raises(
            DataError, match=r"needs a number for every response, .*'wide' has a vec"
        ):
            dataset(folder, stored={"advantages": "wide"})
        with pytest.raises(
            DataError, match=r"needs a vector for every response, .*'flat' has a num"
        ):
            dataset(folder, stored={"embeddings": "flat"})

    @pytest.mark.parametrize("file", ["train.a.npy", "train.a.json"])
    @pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
    def test_damage_is_run_with_one_line_errors(self, file, damage, write_lines, tmp_path):
        """Every byte counts in the array; in its description those that matter."""
        folder, metadata = cached(write_lines, tmp_path, triplets(30, lambda i: [0]))
        values = np.zeros((metadata.num_examples["train"], 1))
        TaskCache(folder).write_stored("train", "a", values, {"units": "rewards"})
        path = Path(folder) / "stored" / file
        content = path.read_bytes()
        places = (0, len(content) // 2, len(content) - 1) if file.endswith("npy") else (0, 30, 100)
        for place in places if damage == "flipped" else places[:1]:
            broken = bytearray(content)
            broken[place] ^= 0x04
            if damage != "flipped":
                broken = content[: len(content) // 2 if damage == "truncated" else 0]
            path.write_bytes(broken)
            with pytest.raises(DataError) as caught:
                dataset(folder, stored={"advantages": "a"})
            assert "\n" not in str(caught.value)
            assert str(path.with_suffix("")) in str(caught.value)


class TestReferenceFeedback:
    @pytest.mark.parametrize("kind", ["triplet", "pair", "ranked", "multi"])
    def test_every_kind_with_feedback_has_it_and_writes_it_back(self, kind, tmp_path):
        obj = {
            "prompt": "p",
            "response": "r",
            "feedback": [2, 1] if kind == "ranked" else 2,
            "chosen": "a",
            "rejected": "b",
            "responses": ["a", "b"] if kind == "ranked" else None,
            "scores": {"x": 1.0},
            "reference_feedback": [1, "up", False, -0.5],
        }
        record = parse_record(obj, kind)
        assert record.reference_feedback == (1.0, 1.0, 0.0, -0.5)
        path = str(tmp_path / "out.jsonl")
        derived.write_jsonl([record], path, kind, score_names=("x",))
        (again,) = validation.read_jsonl(path, kind)
        assert again.key == record.key
        assert again.reference_feedback == record.reference_feedback

    def test_it_can_have_another_name_in_the_file(self):
        obj = {"prompt": "p", "response": "r", "feedback": 1, "samples": [3]}
        record = parse_record(obj, "triplet", fields={"reference_feedback": "samples"})
        assert record.reference_feedback == (3.0,)

    def test_records_without_feedback_have_none(self):
        obj = {"prompt": "p", "response": "r", "reference_feedback": [1]}
        assert parse_record(obj, "seq2seq").reference_feedback is None

    @pytest.mark.parametrize(
        ("given", "reason", "message"),
        [
            ("[1, NaN]", "nonfinite_feedback", "reference_feedback is nan"),
            ("[]", "wrong_type", "at least one number"),
            ("0.5", "wrong_type", "must be a list"),
            ('[1, "good"]', "wrong_type", "reference_feedback is the text"),
        ],
    )
    def test_bad_values_are_refused_with_file_and_line(self, given, reason, message, write_lines):
        line = f'{{"prompt": "p", "response": "r", "feedback": 1, "reference_feedback": {given}}}'
        path, log = write_lines(["", line]), rejections.RejectionLog()
        assert list(validation.read_jsonl(path, "triplet", log=log)) == []
        (entry,) = log.entries
        assert (entry["file"], entry["line"], entry["reason"]) == (path, 2, reason)
        assert message in entry["message"]

    @pytest.mark.parametrize("options", [{}, PACKED])
    def test_batches_have_it_standardised_like_rewards(self, options, write_lines, tmp_path):
        folder, metadata = cached(
            write_lines, tmp_path, triplets(40, lambda i: [i, i + 1, -float(i)])
        )
        assert metadata.fields == ("feedback", "reference_feedback")
        assert metadata.reference_samples == 3
        mean, std = metadata.reward_statistics.mean, metadata.reward_statistics.std
        for split in ("train", "validation"):
            for batch in dataset(folder, split, drop_remainder=False, **options):
                rewards = batch["reference_rewards"]
                assert rewards.shape == (*batch["example_ids"].shape, 3)
                assert rewards.dtype == np.float32
                real = batch["example_ids"] >= 0
                assert (rewards[~real] == 0).all()
                # The first sample has the response's own feedback, so it has its reward, bit for bit.
                np.testing.assert_array_equal(rewards[real][:, 0], batch["rewards"][real][:, 0])
                raw = batch["feedback"][real][:, 0].astype(np.float64)
                np.testing.assert_allclose(rewards[real][:, 1], (raw + 1 - mean) / std, rtol=1e-6)
                np.testing.assert_allclose(rewards[real][:, 2], (-raw - mean) / std, rtol=1e-6)
        raw = next(iter(dataset(folder, standardize=False)))
        np.testing.assert_array_equal(raw["reference_rewards"][..., 0], raw["feedback"][..., 0])

    def test_another_number_of_samples_is_refused_record_by_record(self, write_lines, tmp_path):
        rows = triplets(60, lambda i: [0, 1])
        rows[7]["reference_feedback"] = [0, 1, 2]
        del rows[9]["reference_feedback"]
        validation_rows = [row | {"prompt": f"v{i}"} for i, row in enumerate(rows[10:40])]
        validation_rows[4]["reference_feedback"] = [5]
        train = write_lines(rows, "train.jsonl")
        other = write_lines(validation_rows, "validation.jsonl")
        metadata = cache.cache("m", str(tmp_path / "c"), train_file=train, validation_file=other)
        assert metadata.rejected == {
            "train": {"reference_mismatch": 2},
            "validation": {"reference_mismatch": 1},
        }
        lines = (tmp_path / "c" / "rejected.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert [(e["file"], e["line"]) for e in entries] == [(train, 8), (train, 10), (other, 5)]
        assert "holds 3 numbers, and 2 in the first record" in entries[0]["message"]
        assert f"{train}:1" in entries[2]["message"]

    def test_joined_records_keep_it(self, write_lines, tmp_path):
        rows = [
            {"prompt": f"p{i}", "response": f"r{k}", "feedback": k, "reference_feedback": [i, -i]}
            for k in range(3)
            for i in range(30)
        ]
        folder, metadata = cached(write_lines, tmp_path, rows, responses_per_example=3)
        assert metadata.reference_samples == 2
        for example in TaskCache(folder).split("train"):
            number = float(example.prompt[1:])
            assert example.reference_feedback.tolist() == [number, -number]
            assert example.feedback.tolist() == [2, 1, 0]

    def test_records_of_a_prompt_that_disagree_are_not_joined(self, write_lines, tmp_path):
        rows = [
            {"prompt": f"p{i}", "response": f"r{k}", "feedback": k, "reference_feedback": [i]}
            for i in range(40)
            for k in range(2)
        ]
        rows[11]["reference_feedback"] = [99]
        folder, metadata = cached(write_lines, tmp_path, rows, responses_per_example=2)
        counts = [split.get("reference_mismatch", 0) for split in metadata.rejected.values()]
        assert sum(counts) == 1
        (entry,) = map(json.loads, (Path(folder) / "rejected.jsonl").read_text().splitlines())
        assert entry["line"] == 12
        assert "differs from that of the same prompt at" in entry["message"]
        assert "cache.jsonl:11" in entry["message"]
        path = str(tmp_path / "cache.jsonl")
        source = sources.JsonlSource({"train": path}, "triplet", responses_per_example=2)
        with pytest.raises(DataError, match=r"cache\.jsonl:12: reference_feedback differs"):
            for split in source.splits:
                list(source.records(split))

    def test_joining_refuses_what_differs(self):
        first = Record("p", ("a",), (1.0,), reference_feedback=(1.0,), file="f", line=3)
        second = dataclasses.replace(first, reference_feedback=(2.0,), line=4)
        with pytest.raises(ValueError, match=r"f:4: .* at f:3"):
            derived.group_by_prompt([first, second], 2)
        (joined,) = derived.group_by_prompt([first, dataclasses.replace(first, line=4)], 2)
        assert joined.reference_feedback == (1.0,)

    def test_data_made_from_comparisons_drop_it(self):
        """A pair's feedback is a difference, and a filtered example has none."""
        best = Record("p", ("a",), (1.0,), reference_feedback=(1.0,))
        worst = dataclasses.replace(best, responses=("b",), feedback=(0.0,))
        (pair,) = from_feedback.pairs_from_groups([best, worst])
        (filtered,) = from_feedback.filter_by_feedback([best, worst], threshold=0.5)
        assert pair.reference_feedback is filtered.reference_feedback is None

    def test_records_that_differ_in_it_are_no_duplicates(self):
        record = Record("p", ("a",), (1.0,), reference_feedback=(1.0,))
        other = dataclasses.replace(record, reference_feedback=(2.0,))
        log = rejections.RejectionLog()
        duplicates = validation.Duplicates()
        assert [duplicates.is_new(r, log) for r in (record, other, record)] == [True, True, False]


class TestOlderCaches:
    def test_examples_without_it_have_the_bytes_they_always_had(self):
        plain = examples.make_example([5, 1], [[6, 1]], [1.0], None, prompt_id=3)
        header = msgpack.unpackb(examples.encode_example(plain), raw=False)
        assert set(header) == {"v", "i", "t", "l", "p", "f", "x"}
        assert examples.decode_example(examples.encode_example(plain)).reference_feedback is None
        full = examples.make_example([5, 1], [[6, 1]], [1.0], None, [0.5, 2], prompt_id=3)
        again = examples.decode_example(examples.encode_example(full))
        assert again.reference_feedback.tolist() == [0.5, 2]
        assert again.reference_feedback.dtype == np.float32
