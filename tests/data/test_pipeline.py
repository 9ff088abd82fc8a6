import json
import subprocess
import sys

import numpy as np
import pytest

from jaxalign.data import batches, cache, examples, pipeline
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache

LENGTHS = {"inputs": 32, "targets": 40}
PACKED = {"pack": True, "max_examples_per_row": 4, "row_lengths": {"inputs": 70, "targets": 90}}


def packed(kind):
    targets = {"triplet": 90, "pair": 130, "ranked": 200}[kind]
    return PACKED | {"row_lengths": {"inputs": 70, "targets": targets}}


def dataset(folder, split="train", **options):
    options = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 3} | options
    rows = options.pop("local_rows", None)
    return make_dataset(TaskCache(folder), split, DatasetSettings(**options), local_rows=rows)


def example_ids(batch_list):
    ids = np.concatenate([batch["example_ids"].reshape(-1) for batch in batch_list])
    return ids[ids >= 0].tolist()


def responses_of(batch, num_responses):
    """{example id: (prompt tokens, response tokens ...)} read back through the segment ids."""
    found = {}
    for row, ids in enumerate(batch["example_ids"]):
        for p, example in enumerate(ids):
            if example < 0:
                continue
            prompt = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == p + 1]
            answers = [
                tuple(
                    batch["decoder_target_tokens"][row][
                        batch["decoder_segment_ids"][row] == p * num_responses + k + 1
                    ]
                )
                for k in range(num_responses)
            ]
            found[int(example)] = (tuple(prompt), *answers)
    return found


@pytest.mark.parametrize("kind", ["triplet", "pair", "ranked"])
@pytest.mark.parametrize("pack", [False, True])
def test_batches_hold_exactly_the_tokens_of_the_cache(kind, pack, make_cache):
    folder = make_cache(kind)
    data = TaskCache(folder).split("train")
    K = data.metadata.responses_per_example
    found = {}
    for batch in dataset(
        folder, num_epochs=1, drop_remainder=False, **(packed(kind) if pack else {})
    ):
        found |= responses_of(batch, K)
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        assert (weights == (targets != 0)).all()
        assert ((batch["decoder_segment_ids"] != 0) == (targets != 0)).all()
        assert batch["response_mask"].shape == (8, 4 if pack else 1, K)
        assert ((batch["prompt_ids"] > 0) == (batch["example_ids"] >= 0)).all()
    assert sorted(found) == list(range(len(data)))
    for index, tokens in found.items():
        example = data[index]
        assert tokens[0] == tuple(example.inputs)
        for k in range(len(example.target_lengths)):
            assert tokens[k + 1] == tuple(example.target(k))
            assert tokens[k + 1][-1] == 1


@pytest.mark.parametrize("pack", [False, True])
def test_per_response_arrays_belong_to_their_example(pack, make_cache):
    folder = make_cache("ranked")
    data = TaskCache(folder).split("train")
    statistics = data.metadata.reward_statistics
    for batch in dataset(
        folder, num_epochs=1, drop_remainder=False, **(packed("ranked") if pack else {})
    ):
        for row, p in np.argwhere(batch["example_ids"] >= 0):
            example = data[batch["example_ids"][row, p]]
            count = len(example.feedback)
            np.testing.assert_array_equal(batch["feedback"][row, p, :count], example.feedback)
            rewards = (example.feedback.astype(np.float64) - statistics.mean) / statistics.std
            np.testing.assert_array_equal(
                batch["rewards"][row, p, :count], rewards.astype(np.float32)
            )
            assert batch["response_mask"][row, p].sum() == count
            assert batch["prompt_ids"][row, p] == example.prompt_id
        empty = batch["response_mask"] == 0
        assert (batch["rewards"][empty] == 0).all()


@pytest.mark.parametrize("kind", ["pair", "ranked"])
@pytest.mark.parametrize("pack", [False, True])
def test_best_only_batches_hold_the_chosen_response_and_its_numbers(kind, pack, make_cache):
    folder = make_cache(kind)
    data = TaskCache(folder).split("train")
    shape = (len(data), data.metadata.responses_per_example)
    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    TaskCache(folder).write_stored("train", "numbers", numbers, {})
    options = {"best_only": True, "stored": {"advantages": "numbers"}, "num_epochs": 1}
    options |= {"drop_remainder": False, **(PACKED if pack else {})}
    found = {}
    for batch in dataset(folder, **options):
        assert batch["response_mask"].shape[-1] == 1
        found |= responses_of(batch, 1)
        for row, p in np.argwhere(batch["example_ids"] >= 0):
            index = int(batch["example_ids"][row, p])
            best = 0 if kind == "pair" else int(np.argmax(data[index].feedback))
            assert found[index][1] == tuple(data[index].target(best))
            assert batch["feedback"][row, p, 0] == data[index].feedback[best]
            assert batch["advantages"][row, p, 0] == numbers[index, best]
    assert sorted(found) == list(range(len(data)))


def test_validation_rewards_use_training_statistics(make_cache):
    folder = make_cache()
    statistics = TaskCache(folder).metadata.reward_statistics
    for batch in dataset(folder, "validation", num_epochs=1, shuffle=False, drop_remainder=False):
        real = batch["response_mask"] > 0
        expected = (batch["feedback"] - statistics.mean) / statistics.std
        np.testing.assert_allclose(batch["rewards"][real], expected[real], rtol=1e-6)
    raw = next(iter(dataset(folder, standardize=False)))
    np.testing.assert_array_equal(raw["rewards"], raw["feedback"])


def test_decoder_inputs_start_every_response_anew(make_cache):
    batch = next(iter(dataset(make_cache("pair"), **packed("pair"))))
    targets, inputs = batch["decoder_target_tokens"], batch["decoder_input_tokens"]
    segments = batch["decoder_segment_ids"]
    for row in range(len(targets)):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            assert inputs[row][here].tolist() == [0, *targets[row][here][:-1]]
        assert (inputs[row][segments[row] == 0] == 0).all()


def test_the_shuffle_is_seeded_and_new_every_epoch(make_cache):
    folder = make_cache()
    number = TaskCache(folder).metadata.num_examples["train"]

    def order(seed, epochs):
        return example_ids(dataset(folder, batch_size=number, seed=seed, num_epochs=epochs))

    two = order(3, 2)
    assert sorted(two[:number]) == sorted(two[number:]) == list(range(number))
    assert two[:number] != two[number:]
    assert order(3, 1) == two[:number]
    assert order(4, 1) != two[:number]
    unshuffled = dataset(folder, batch_size=number, shuffle=False, num_epochs=1)
    assert example_ids(unshuffled) == list(range(number))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("shares", [[range(4), range(4, 8)], [[0, 5], [1, 4], [2, 3, 6], [7]]])
def test_a_process_makes_its_rows_of_the_global_batches(pack, shares, make_cache):
    """Also of the last, incomplete one, and with the same iterator state as one process that makes all rows."""
    options = {"num_epochs": 2, "drop_remainder": False, **(PACKED if pack else {})}

    def start(**more):
        return iter(dataset(make_cache(), **options, **more))

    whole, parts = start(), [start(local_rows=rows) for rows in shares]
    for batch in whole:
        for rows, part in zip(shares, parts, strict=True):
            own = next(part)
            assert own.keys() == batch.keys()
            for name, array in batch.items():
                np.testing.assert_array_equal(own[name], array[list(rows)])
            assert part.get_state() == whole.get_state()
    for part in parts:
        with pytest.raises(StopIteration):
            next(part)


def test_a_state_is_taken_over_by_another_number_of_processes(make_cache):
    one = iter(dataset(make_cache(), **PACKED, local_rows=range(2)))
    for _ in range(9):
        next(one)
    state = json.loads(json.dumps(one.get_state()))
    whole = iter(dataset(make_cache(), **PACKED))
    expected = [next(whole)["example_ids"] for _ in range(14)][9:]
    for rows in (range(8), range(4, 8)):
        other = iter(dataset(make_cache(), **PACKED, local_rows=rows))
        other.set_state(state)
        for ids in expected:
            np.testing.assert_array_equal(next(other)["example_ids"], ids[list(rows)])


@pytest.mark.parametrize("options", [{}, PACKED, PACKED | {"read_threads": 0}])
def test_resuming_continues_bit_for_bit(options, make_cache):
    """Also past the end of an epoch, and from a state that has been through JSON."""
    folder = make_cache()
    iterator = iter(dataset(folder, **options))
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = [next(iterator) for _ in range(14)]
    for _ in range(2):
        resumed = iter(dataset(folder, **options))
        resumed.set_state(state)
        assert json.loads(json.dumps(resumed.get_state())) == state
        for batch in wanted:
            again = next(resumed)
            assert again.keys() == batch.keys()
            for name in batch:
                np.testing.assert_array_equal(again[name], batch[name])
                assert again[name].dtype == batch[name].dtype


def test_a_used_iterator_can_be_set_back(make_cache):
    iterator = iter(dataset(make_cache(), **PACKED))
    start = iterator.get_state()
    first = [next(iterator)["example_ids"] for _ in range(4)]
    iterator.set_state(start)
    np.testing.assert_array_equal(first, [next(iterator)["example_ids"] for _ in range(4)])


@pytest.mark.parametrize("pack", [False, True])
def test_the_last_batch_is_filled_with_empty_rows(pack, make_cache):
    folder = make_cache()
    options = dict(num_epochs=1, shuffle=False, **(PACKED if pack else {}))
    whole = list(dataset(folder, "validation", drop_remainder=False, **options))
    assert sorted(example_ids(whole)) == list(range(13))
    assert {b["encoder_input_tokens"].shape for b in whole} == {(8, 70 if pack else 32)}
    last = whole[-1]
    empty = (last["example_ids"] < 0).all(axis=1)
    assert empty.any()
    for name in ("decoder_loss_weights", "response_mask", "encoder_segment_ids", "rewards"):
        assert (last[name][empty] == 0).all()
    if not pack:
        assert example_ids(dataset(folder, "validation", drop_remainder=True, **options)) == list(
            range(8)
        )


def test_packing_fills_rows(make_cache):
    folder = make_cache("triplet", 400)
    stream = iter(dataset(folder, **PACKED | {"max_examples_per_row": 8}))
    filled = [(next(stream)["encoder_segment_ids"] > 0).mean() for _ in range(5)]
    assert np.mean(filled) > 0.8


def test_reference_scores_follow_their_example(make_cache, tmp_path):
    folder = make_cache("pair")
    data = TaskCache(folder).split("train")
    scores = np.random.default_rng(0).normal(size=(len(data), 2)).astype(np.float32)
    TaskCache(folder).write_stored("train", "test", scores, {})
    for options in ({}, packed("pair")):
        batch = next(iter(dataset(folder, reference_scores="test", **options)))
        for row, p in np.argwhere(batch["example_ids"] >= 0):
            np.testing.assert_array_equal(
                batch["reference_log_probs"][row, p], scores[batch["example_ids"][row, p]]
            )


def test_scores_of_several_objectives(write_lines, tmp_path):
    path = write_lines(
        [
            {"prompt": f"p{i}", "response": "r", "scores": {"b": i, "a": -i}, "feedback": 2 * i}
            for i in range(30)
        ]
    )
    folder = str(tmp_path / "c")
    metadata = cache.cache("m", folder, kind="multi", train_file=path)
    assert metadata.score_names == ("a", "b")
    assert metadata.fields == ("feedback", "scores")
    batch = next(iter(dataset(folder, pack=True)))
    real = batch["response_mask"] > 0
    np.testing.assert_array_equal(batch["scores"][real][:, 1], batch["feedback"][real] / 2)
    np.testing.assert_array_equal(batch["scores"][real][:, 0], -batch["feedback"][real] / 2)


def test_seq2seq_batches_have_no_feedback(make_cache):
    batch = next(iter(dataset(make_cache("seq2seq"))))
    assert not {"feedback", "rewards"} & set(batch)
    assert batch["decoder_target_tokens"].dtype == np.int32
    assert batch["decoder_loss_weights"].dtype == np.float32


def test_mistakes_are_told_in_one_sentence(make_cache):
    folder = make_cache()
    with pytest.raises(DataError, match=r"longest response of 'train' .* feature_lengths"):
        dataset(folder, feature_lengths={"inputs": 32, "targets": 5})
    with pytest.raises(ValueError, match="are not all rows of a batch of 8"):
        dataset(folder, local_rows=[7, 8])
    with pytest.raises(DataError, match="too few for one batch"):
        dataset(folder, "validation", batch_size=64, num_epochs=1)
    with pytest.raises(ValueError, match="row_lengths is for pack=True"):
        dataset(folder, row_lengths={"inputs": 64, "targets": 64})


def test_absent_responses_leave_their_segment_id_out():
    """K = 2, but the first example has one response: the next example's ids do not move."""
    one = examples.make_example([7, 1], [[8, 1]], [1.0], None, prompt_id=1)
    two = examples.make_example([9, 1], [[3, 1], [4, 1]], [2.0, 3.0], None, prompt_id=2)
    batch = batches.make_batch(
        [[(0, one), (1, two)]],
        num_rows=1,
        input_length=5,
        target_length=7,
        examples_per_row=2,
        responses_per_example=2,
    )
    assert batch["decoder_segment_ids"].tolist() == [[1, 1, 3, 3, 4, 4, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[8, 1, 3, 1, 4, 1, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 8, 0, 3, 0, 4, 0]]
    assert batch["encoder_segment_ids"].tolist() == [[1, 1, 2, 2, 0]]
    assert batch["response_mask"].tolist() == [[[1, 0], [1, 1]]]
    assert batch["feedback"].tolist() == [[[1, 0], [2, 3]]]
    with pytest.raises(ValueError, match="Row 0 has 6 tokens and room for 5"):
        batches.place_segments(np.ones(6, np.int32), np.full((1, 3), 2), 5)


def test_importing_the_pipeline_imports_no_tensorflow_and_leaves_quietly(make_cache):
    code = (
        "import sys\n"
        "from jaxalign.data import pipeline, cache, synthetic, slots, task_cache\n"
        f"s = pipeline.DatasetSettings(feature_lengths={LENGTHS!r}, batch_size=8, pack=True, "
        "row_lengths={'inputs': 70, 'targets': 90})\n"
        f"d = pipeline.make_dataset(task_cache.TaskCache({make_cache()!r}), 'train', s)\n"
        "it = iter(d); next(it)\n"
        "bad = {'tensorflow', 'seqio', 'gin', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exception" not in done.stderr
    assert pipeline.__doc__
