"""`TaskData`: a cache of other options is not taken for this run's, and what is stored for a run is there before it starts."""

import json
import os

import numpy as np
import pytest

from jaxalign.data import bundled_sources, cache, train_vocabulary
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError

LENGTHS = {"inputs": 12, "targets": 12}


def rows(number, *, long=()):
    return [
        {
            "prompt": f"p{i}" + "x" * (30 if i in long else 0),
            "response": f"r{i}",
            "feedback": float(i % 3),
        }
        for i in range(number)
    ]


@pytest.fixture
def make(tmp_path):
    """`make(rows, **cache options)` makes a cache of the task 'mine' and returns its folder."""

    def cached(objects, name="cache", **options):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(obj) + "\n" for obj in objects), encoding="utf-8")
        folder = str(tmp_path / name)
        sizes = {"max_input_length": 12, "max_target_length": 12}
        cache.cache("mine", folder, train_file=str(path), **(sizes | options))
        return folder

    return cached


def task(folder, **options):
    return TaskData(**({"task": "mine", "cache_dir": folder, "feature_lengths": LENGTHS} | options))


class TestAnExistingCache:
    def test_is_reused_if_this_run_would_make_the_same(self, make):
        folder = make(rows(40))
        changed = os.path.getmtime(os.path.join(folder, "metadata.json"))
        assert task(folder).prepare() == TaskCache(folder).metadata
        # Nothing was cut at 12, so a longer or shorter limit that fits gives the same examples.
        for lengths in ({"inputs": 50, "targets": 50}, {"inputs": 5, "targets": 5}):
            task(folder, feature_lengths=lengths).prepare()
        task(folder, vocabulary="bytes", long_prompts="truncate_left").prepare()
        assert os.path.getmtime(os.path.join(folder, "metadata.json")) == changed

    def test_of_another_task_is_refused(self, make):
        with pytest.raises(UserError, match="caches task 'mine', not 'other'"):
            task(make(rows(40)), task="other").prepare()

    def test_that_cut_what_this_run_allows_is_refused(self, make):
        folder = make(rows(40, long=(3, 4)))
        with pytest.raises(
            UserError, match=r"max_input_length 12, which cut or rejected 2 records, instead of 50"
        ):
            task(folder, feature_lengths={"inputs": 50, "targets": 12}).prepare()
        with pytest.raises(UserError, match=r"long_prompts 'truncate' instead of 'truncate_left'"):
            task(folder, long_prompts="truncate_left").prepare()
        task(folder).prepare()

    def test_that_rejected_what_this_run_allows_is_refused(self, make):
        long = [row | {"response": "y" * 20} for row in rows(2)]
        folder = make(rows(40) + long, max_rejected_fraction=0.5)
        with pytest.raises(UserError, match=r"max_target_length 12, which .* 2 records"):
            task(folder, feature_lengths={"inputs": 12, "targets": 30}).prepare()

    def test_without_the_repeated_records_is_refused_where_they_are_kept(self, make):
        folder = make(rows(40) + rows(1), max_rejected_fraction=0.5)
        with pytest.raises(UserError, match=r"duplicates 'reject', which dropped 1 records"):
            task(folder, duplicates="keep").prepare()
        task(folder).prepare()

    def test_of_another_vocabulary_is_refused(self, make, tmp_path):
        model = str(tmp_path / "small.model")
        texts = [f"{row['prompt']} {row['response']}" for row in rows(40)]
        train_vocabulary.train_sentencepiece(texts, model, vocab_size=40)
        folder = make(rows(40))
        with pytest.raises(
            UserError,
            match=r"vocabulary bytes with 0 extra ids instead of sentencepiece .* Choose another",
        ):
            task(folder, vocabulary=model).prepare()
        with pytest.raises(UserError, match=r"instead of bytes with 100 extra ids"):
            task(folder, vocabulary="bytes", extra_ids=100).prepare()
        # A cache is moved with its own copy of the model; that the original is elsewhere is no difference.
        other = make(rows(40), "other", vocabulary=model)
        task(other, vocabulary=model).prepare()
        task(other, vocabulary=str(tmp_path / "gone.model")).prepare()

    def test_of_a_bundled_task_is_compared_with_what_it_is_by_default(self, tmp_path, monkeypatch):
        small = bundled_sources.SyntheticSource("pair", 100, 20, responses_per_prompt=4)
        monkeypatch.setitem(bundled_sources.BUNDLED, "synthetic_pairs", lambda: small)
        folder = str(tmp_path / "cache")
        lengths = {"inputs": 200, "targets": 200}
        cache.cache("synthetic_pairs", folder, max_input_length=200, max_target_length=200)
        bundled = {"task": "synthetic_pairs", "feature_lengths": lengths}
        task(folder, **bundled).prepare()
        with pytest.raises(UserError, match="instead of bytes with 3 extra ids"):
            task(folder, extra_ids=3, **bundled).prepare()


class TestStoredFields:
    @pytest.fixture
    def folder(self, make):
        folder = make(rows(40))
        for split in ("train", "validation"):
            number = TaskCache(folder).metadata.num_examples[split]
            values = np.where(np.arange(number) % 4 == 0, 1.0, -1.0)[:, None]
            TaskCache(folder).write_stored(split, "both", values, {})
            if split == "train":
                TaskCache(folder).write_stored(split, "one", values, {})
        return folder

    def test_are_in_the_batches_of_training_and_evaluation(self, folder):
        data = task(folder, stored={"advantages": "both", "density_ratios": "both"})
        data.prepare()
        training = next(iter(data.training_dataset(4, 0, None)))
        evaluation = next(data.evaluation_batches(4, None))
        for batch in (training, evaluation):
            np.testing.assert_array_equal(batch["advantages"], batch["density_ratios"])
            real = batch["response_mask"] > 0
            assert set(batch["advantages"][real]) <= {1.0, -1.0}

    def test_that_evaluation_lacks_are_refused_before_training(self, folder):
        data = task(folder, stored={"advantages": "one"})
        with pytest.raises(
            UserError,
            match=r"'one' for the split 'validation' \(it has: both\).*eval_split= \(empty\) trains without",
        ):
            data.prepare()
        task(folder, stored={"advantages": "one"}, eval_split="").prepare()

    def test_of_unknown_fields_are_refused_at_once(self, folder):
        with pytest.raises(UserError, match="batch field 'advantage'; known: advantages"):
            task(folder, stored={"advantage": "both"})

    def test_sampling_is_of_training_only_and_reported(self, folder):
        data = task(folder, stored={"advantages": "both"}, sampling="positive")
        metadata = data.prepare()
        kept = data.sampled.describe()
        assert kept["kept_fraction"] == kept["kept_examples"] / metadata.num_examples["train"]
        dataset = iter(data.training_dataset(4, 0, None))
        assert all((next(dataset)["advantages"] == 1).all() for _ in range(6))
        seen = np.concatenate([b["advantages"].ravel() for b in data.evaluation_batches(4, None)])
        assert (seen < 0).any()
        assert task(folder).sampled is None

    def test_sampling_by_what_is_not_stored_is_refused_before_training(self, folder):
        with pytest.raises(UserError, match="'priority' draws by the stored field 'advantages'"):
            task(folder, sampling="priority").prepare()
        with pytest.raises(UserError, match="Unknown sampling 'advantage'"):
            task(folder, sampling="advantage")
