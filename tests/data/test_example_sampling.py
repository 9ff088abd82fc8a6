"""Sampling by advantage or reward: how often each example is drawn, resuming, sharing, packing, and what is refused."""

import json
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxalign.data import cache
from jaxalign.data.example_sampling import Sampling, WeightedIndices, open_sampling
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache

LENGTHS = {"inputs": 16, "targets": 16}
PACKED = {"pack": True, "max_examples_per_row": 3, "row_lengths": {"inputs": 40, "targets": 40}}
STORED = {"advantages": "a"}
MODES = ("positive", "priority", "reward")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A cache of about 90 triplets with feedback 0, 1, 2, 3 and advantages of which about half are positive."""
    folder = tmp_path_factory.mktemp("sampling")
    return make_task(folder, [float(i % 4) for i in range(100)])


def make_task(folder, feedback, *, responses=1, values=None):
    path, cache_dir = folder / "data.jsonl", str(folder / "cache")
    rows = [
        {"prompt": f"p{i // responses}", "response": "r" * (1 + i % 5) + str(i), "feedback": value}
        for i, value in enumerate(feedback)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metadata = cache.cache("mine", cache_dir, train_file=str(path), responses_per_example=responses)
    shape = (metadata.num_examples["train"], responses)
    if values is None:
        values = np.random.default_rng(1).normal(size=shape)
    TaskCache(cache_dir).write_stored("train", "a", np.broadcast_to(values, shape), {})
    return cache_dir


def drawn(folder, mode, **options):
    """A dataset sampled by a mode."""
    sampling = open_sampling(TaskCache(folder), "train", mode, stored=STORED)
    defaults = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 3}
    options = defaults | options
    rows = options.pop("local_rows", None)
    settings = DatasetSettings(sampling=sampling, **options)
    return make_dataset(TaskCache(folder), "train", settings, local_rows=rows)


def ids_of(batches):
    ids = np.concatenate([batch["example_ids"].reshape(-1) for batch in batches])
    return ids[ids >= 0].tolist()


def one_epoch(folder, mode, **options):
    return ids_of(drawn(folder, mode, num_epochs=1, drop_remainder=False, **options))


def advantages(folder):
    return TaskCache(folder).stored("train", "a").values


class TestFrequencies:
    def test_positive_draws_every_positive_example_once_an_epoch(self, task):
        kept = np.flatnonzero(advantages(task)[:, 0] > 0).tolist()
        assert 0 < len(kept) < len(advantages(task))
        epochs = [one_epoch(task, "positive", seed=seed) for seed in (3, 4)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == kept
        assert epochs[0] != epochs[1]
        both = ids_of(drawn(task, "positive", batch_size=len(kept), num_epochs=2))
        assert sorted(both[: len(kept)]) == sorted(both[len(kept) :]) == kept
        assert both[: len(kept)] == epochs[0]

    @pytest.mark.parametrize("mode", ["priority", "reward"])
    def test_weighted_counts_are_within_one_of_their_expectation(self, task, mode):
        weights = example_weights(task, mode)
        number = int((weights > 0).sum())
        expected = number * weights / weights.sum()
        for seed in range(4):
            counts = Counter(one_epoch(task, mode, seed=seed))
            assert sum(counts.values()) == number
            for index, mean in enumerate(expected):
                assert np.floor(mean) <= counts[index] <= np.ceil(mean)

    def test_equal_weights_draw_every_example_alike(self, tmp_path):
        """Of feedback that is 0 or 2, an epoch holds each 2 exactly once."""
        folder = make_task(tmp_path, [2.0 * (i % 3 == 0) for i in range(60)])
        wanted = [i for i, e in enumerate(TaskCache(folder).split("train")) if e.feedback[0] > 0]
        assert sorted(one_epoch(folder, "reward")) == wanted

    @hypothesis.given(
        st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20), st.integers(0, 2**31 - 1)
    )
    def test_the_mean_count_over_epochs_is_proportional_to_the_weight(self, weights, seed):
        """Within five standard errors; that of a count, which takes two neighbouring values, is at most 1/2."""
        weights = np.asarray(weights)
        draws = WeightedIndices(np.arange(len(weights)), weights, seed)
        number, epochs = len(weights), 200
        counts = np.zeros(number)
        for index in range(epochs * number):
            counts[draws[index]] += 1
        expected = number * weights / weights.sum()
        assert np.abs(counts / epochs - expected).max() < 5 * 0.5 / np.sqrt(epochs)

    @hypothesis.given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=30))
    def test_nothing_without_weight_is_ever_drawn(self, weights):
        weights = np.asarray(weights)
        kept = np.flatnonzero(weights > 0)
        hypothesis.assume(len(kept))
        draws = WeightedIndices(kept, weights[kept], 0)
        assert {draws[index] for index in range(3 * len(kept))} <= set(kept.tolist())

    def test_the_order_is_shuffled_and_new_every_epoch(self, task):
        number = int((example_weights(task, "priority") > 0).sum())
        two, again = (
            ids_of(drawn(task, "priority", batch_size=number, num_epochs=2)) for _ in range(2)
        )
        first, second = two[:number], two[number:]
        assert first != second
        assert first != sorted(first)
        assert again == two


def example_weights(folder, mode):
    if mode == "reward":
        feedback = [example.feedback.sum() for example in TaskCache(folder).split("train")]
        return np.asarray(feedback, np.float64)
    return np.maximum(advantages(folder).astype(np.float64), 0).sum(axis=1)


@pytest.mark.parametrize("mode", MODES)
class TestThePipeline:
    @pytest.mark.parametrize("options", [{}, PACKED, PACKED | {"read_threads": 0}])
    def test_resuming_continues_bit_for_bit(self, task, mode, options):
        """Also past the end of an epoch, and from a state that has been through JSON."""
        iterator = iter(drawn(task, mode, stored=STORED, **options))
        for _ in range(4):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
        wanted = [next(iterator) for _ in range(12)]
        resumed = iter(drawn(task, mode, stored=STORED, **options))
        resumed.set_state(state)
        for batch in wanted:
            again = next(resumed)
            assert again.keys() == batch.keys()
            for name in batch:
                np.testing.assert_array_equal(again[name], batch[name])

    @pytest.mark.parametrize("pack", [False, True])
    def test_the_rows_of_the_processes_are_the_draws_of_an_epoch(self, task, mode, pack):
        options = {"num_epochs": 1, "drop_remainder": False, **(PACKED if pack else {})}
        size = next(iter(drawn(task, mode, **options)))["example_ids"].shape[0]
        shares = [
            list(drawn(task, mode, local_rows=range(start, size, 2), **options)) for start in (0, 1)
        ]
        assert sorted(ids_of(shares[0]) + ids_of(shares[1])) == sorted(one_epoch(task, mode))
        assert len(shares[0]) == len(shares[1])

    def test_packing_draws_the_same_examples(self, task, mode):
        assert sorted(one_epoch(task, mode, **PACKED)) == sorted(one_epoch(task, mode))

    def test_stored_fields_follow_the_examples_that_are_drawn(self, task, mode):
        values = advantages(task)
        for batch in drawn(task, mode, stored=STORED, num_epochs=1, **PACKED):
            real = batch["example_ids"] >= 0
            np.testing.assert_array_equal(
                batch["advantages"][real], values[batch["example_ids"][real]]
            )
            if mode != "reward":
                assert (batch["advantages"][real] > 0).all()

    def test_the_share_that_is_kept_is_reported(self, task, mode):
        weights = example_weights(task, mode)
        described = open_sampling(TaskCache(task), "train", mode, stored=STORED).describe()
        assert described == {
            "mode": mode,
            "kept_examples": int((weights > 0).sum()),
            "kept_fraction": float((weights > 0).mean()),
        }


class TestSeveralResponses:
    def test_the_weight_is_the_sum_over_the_responses_there_are(self, tmp_path):
        """Where a response is absent, whatever the array holds does not count."""
        # 59 rows of 2 per prompt: the last prompt has one response.
        folder = make_task(tmp_path, [1.0] * 59, responses=2)
        data = list(TaskCache(folder).split("train"))
        values = np.tile([[-1.0, 3.0]], (len(data), 1))
        values[0] = [2.0, 3.0]
        values[1] = [-1.0, -3.0]
        TaskCache(folder).write_stored("train", "a", values, {})
        expected = [
            max(values[i, 0], 0) + (max(values[i, 1], 0) if len(e.target_lengths) > 1 else 0)
            for i, e in enumerate(data)
        ]
        sampling = open_sampling(TaskCache(folder), "train", "priority", stored=STORED)
        np.testing.assert_array_equal(sampling.kept, np.flatnonzero(expected))
        np.testing.assert_array_equal(sampling.weights, np.asarray(expected)[sampling.kept])
        assert any(len(e.target_lengths) == 1 for e in data), "choose another number of rows"
        single = next(i for i, e in enumerate(data) if len(e.target_lengths) == 1)
        assert single not in sampling.kept
        positive = open_sampling(TaskCache(folder), "train", "positive", stored=STORED)
        np.testing.assert_array_equal(positive.kept, sampling.kept)
        assert positive.weights is None
        rewards = open_sampling(TaskCache(folder), "train", "reward")
        assert rewards.weights.tolist() == [float(len(e.target_lengths)) for e in data]


class TestRefusals:
    def test_an_unknown_mode(self, task):
        with pytest.raises(DataError, match=r"sampling 'best'; known: 'uniform', 'positive'"):
            open_sampling(TaskCache(task), "train", "best")
        assert open_sampling(TaskCache(task), "train", "uniform") is None

    def test_a_field_that_is_not_stored(self, task):
        with pytest.raises(
            DataError, match=r"'priority' draws by the stored field 'advantages'.*none"
        ):
            open_sampling(TaskCache(task), "train", "priority")
        with pytest.raises(DataError, match=r"field 'margin_rewards'.*\(advantages\)"):
            open_sampling(
                TaskCache(task), "train", "positive", stored=STORED, field="margin_rewards"
            )

    @pytest.mark.parametrize("mode", ["positive", "priority"])
    def test_no_positive_advantage(self, tmp_path, mode):
        folder = make_task(tmp_path, [1.0] * 40, values=np.asarray(-0.5))
        with pytest.raises(
            DataError, match=rf"'{mode}' has nothing to draw: no value of 'a' in the split 'train'"
        ):
            open_sampling(TaskCache(folder), "train", mode, stored=STORED)

    def test_no_positive_feedback(self, tmp_path):
        with pytest.raises(DataError, match="nothing to draw: no feedback in the split 'train'"):
            open_sampling(TaskCache(make_task(tmp_path, [0.0] * 40)), "train", "reward")

    def test_negative_feedback_is_named_by_file_and_line(self, tmp_path):
        folder = make_task(tmp_path, [-0.25 if i == 17 else 1.0 for i in range(40)])
        with pytest.raises(DataError, match=r"feedback >= 0, but data\.jsonl:18 .* has -0\.25"):
            open_sampling(TaskCache(folder), "train", "reward")

    def test_data_without_feedback(self, make_cache):
        with pytest.raises(DataError, match=r"sampling 'reward' needs feedback, and .* has none"):
            open_sampling(TaskCache(make_cache("seq2seq")), "train", "reward")

    def test_sampling_of_a_split_of_another_size(self, task):
        other = Sampling("positive", np.arange(3), None, examples=7)
        with pytest.raises(ValueError, match="is of a split with 7 examples"):
            settings = DatasetSettings(feature_lengths=LENGTHS, batch_size=8, sampling=other)
            make_dataset(TaskCache(task), "train", settings)
