"""seqio Tasks and Mixtures. One file, because importing seqio takes ten seconds."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from jaxalign.data import bundled_sources, cache, tasks, vocabularies
from jaxalign.data.cache_metadata import RewardStatistics
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError

seqio = pytest.importorskip("seqio")

TEXTS = ["the golden lion serves thai food .", "naïve café ☃", "inform hotel ( stars = two )", "a"]


@pytest.fixture(autouse=True)
def clean_registries():
    yield
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def triplet_file(write_lines, number=40, name="data.jsonl", prefix="p", bad=()):
    rows = [
        {"prompt": f"{prefix} {i}", "response": f"answer {i}", "feedback": i % 4}
        for i in range(number)
    ]
    return write_lines([*rows, *bad], name)


def test_seqio_gives_the_same_ids(small_vocabulary):
    for ours in (
        vocabularies.SentencePieceVocabulary(small_vocabulary),
        vocabularies.SentencePieceVocabulary(small_vocabulary, extra_ids=5),
        vocabularies.ByteVocabulary(),
        vocabularies.ByteVocabulary(extra_ids=3),
    ):
        theirs = ours.to_seqio()
        assert theirs.vocab_size == ours.size
        assert (theirs.pad_id, theirs.eos_id) == (ours.pad_id, ours.eos_id)
        for text in [*TEXTS, "see <extra_id_0> now"]:
            ids = ours.encode(text)
            assert list(theirs.encode(text)) == ids
            assert theirs.encode_tf(text).numpy().tolist() == ids
        assert ours.decode(ours.encode(TEXTS[0])) == theirs.decode(ours.encode(TEXTS[0]))


def test_seqio_gives_the_same_ids_for_t5s_vocabulary(shared_dir):
    path = str(shared_dir / "data/tokenizers/t5_cc_all_32000.model")
    ours = vocabularies.SentencePieceVocabulary(path, extra_ids=100)
    theirs = ours.to_seqio()
    for text in [*TEXTS, "x <extra_id_0> y <extra_id_99>", "line\nbreak {code}"]:
        assert theirs.encode_tf(text).numpy().tolist() == ours.encode(text)


def test_a_task_yields_the_token_features(write_lines):
    path = triplet_file(write_lines)
    task = tasks.register_jsonl_task("mine", "triplet", {"train": path, "validation": path})
    assert isinstance(task, seqio.Task)
    assert seqio.get_mixture_or_task("mine") is task
    dataset = task.get_dataset(None, "train", shuffle=False)
    first = next(dataset.as_numpy_iterator())
    byte = vocabularies.ByteVocabulary()
    assert first["inputs"].tolist() == [*byte.encode("p 0"), 1]
    assert first["targets"].tolist() == [*byte.encode("answer 0"), 1]
    assert first["target_lengths"].tolist() == [9]
    assert first["feedback"].tolist() == [0.0]


def test_several_responses_are_flat_targets_with_their_lengths():
    source = bundled_sources.SyntheticSource("ranked", 5, 2, responses_per_prompt=3)
    task = tasks.register_source_task("ranked", source)
    record = next(source.records("train"))
    example = next(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    ends = np.cumsum(example["target_lengths"])
    parts = np.split(example["targets"], ends[:-1])
    byte = vocabularies.ByteVocabulary()
    assert [part.tolist() for part in parts] == [[*byte.encode(r), 1] for r in record.responses]
    np.testing.assert_allclose(example["feedback"], record.feedback)


@pytest.mark.parametrize("kind", ["triplet", "seq2seq", "pair"])
def test_a_cache_made_through_seqio_equals_one_made_directly(kind, small_vocabulary, tmp_path):
    source = bundled_sources.SyntheticSource(kind, 30, 5, responses_per_prompt=3)
    vocabulary = vocabularies.SentencePieceVocabulary(small_vocabulary)
    direct = cache.cache_source(source, str(tmp_path / "a"), name="a", vocabulary=vocabulary)
    tasks.register_source_task("task", source, vocabulary=vocabulary)
    through = cache.cache("task", str(tmp_path / "b"), max_input_length=512)
    assert through.num_examples == direct.num_examples
    assert through.reward_statistics == direct.reward_statistics
    for split in ("train", "validation"):
        for a, b in zip(
            TaskCache(str(tmp_path / "a")).split(split),
            TaskCache(str(tmp_path / "b")).split(split),
            strict=True,
        ):
            assert (a.prompt, a.responses, a.prompt_id) == (b.prompt, b.responses, b.prompt_id)
            np.testing.assert_array_equal(a.inputs, b.inputs)
            np.testing.assert_array_equal(a.targets, b.targets)
            np.testing.assert_array_equal(a.target_lengths, b.target_lengths)
            if kind != "seq2seq":
                np.testing.assert_array_equal(a.feedback, b.feedback)


def test_bad_records_are_counted_through_seqio_too(write_lines, tmp_path):
    path = triplet_file(write_lines, bad=["oops", {"prompt": "p 3", "response": "x"}])
    tasks.register_jsonl_task("mine", "triplet", {"train": path, "validation": path})
    metadata = cache.cache("mine", str(tmp_path / "c"), splits=["train"])
    assert metadata.rejected["train"] == {"invalid_json": 1, "missing_field": 1}
    assert metadata.splits["train"].num_read == 42
    with pytest.raises(DataError, match=r"2 of 42 records"):
        cache.cache("mine", str(tmp_path / "d"), splits=["train"], max_rejected_fraction=0.01)


def test_a_mixture_holds_every_example_of_its_tasks(write_lines, tmp_path):
    first = triplet_file(write_lines, 40, "a.jsonl", "a")
    second = triplet_file(write_lines, 20, "b.jsonl", "b")
    tasks.register_jsonl_task("a", "triplet", {"train": first})
    tasks.register_jsonl_task("b", "triplet", {"train": second})
    mixture = tasks.register_mixture("both", ["a", ("b", 2.0)])
    assert isinstance(mixture, seqio.Mixture)
    metadata = cache.cache("both", str(tmp_path / "c"))
    assert sum(metadata.num_examples.values()) == 60
    assert {
        name: split.num_prompts for name, split in metadata.splits.items()
    } == metadata.num_examples
    again = cache.cache("both", str(tmp_path / "d"))
    assert again.fingerprint == metadata.fingerprint


def test_somebody_elses_seqio_task_can_be_cached(tmp_path):
    import tensorflow as tf

    def data(split, shuffle_files=False, seed=None):
        texts = [f"{split} {i}" for i in range(10)]
        return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts})

    vocabulary = seqio.ByteVocabulary()
    seqio.TaskRegistry.add(
        "foreign",
        source=seqio.FunctionDataSource(data, splits=("train", "validation")),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")
        },
    )
    metadata = cache.cache("foreign", str(tmp_path / "c"))
    assert (metadata.kind, metadata.num_examples["train"]) == ("seq2seq", 10)
    example = TaskCache(str(tmp_path / "c")).split("train")[0]
    assert (example.prompt, example.responses) == ("train 0", ("train 0",))
    assert example.inputs.tolist() == [*vocabulary.encode("train 0"), 1]


def test_bundled_tasks_register_and_unknown_ones_are_named(tmp_path):
    assert "synthetic_pairs" in tasks.register_bundled_tasks()
    assert "synthetic_pairs" in seqio.TaskRegistry.names()
    with pytest.raises(DataError, match=r"Unknown task 'synthetic'; known: synthetic_triplets"):
        cache.cache("synthetic", str(tmp_path / "c"))


def test_another_vocabulary_than_the_tasks_own_is_refused(write_lines, small_vocabulary, tmp_path):
    path = triplet_file(write_lines)
    tasks.register_jsonl_task("mine", "triplet", {"train": path}, vocabulary="bytes")
    with pytest.raises(DataError, match="with its own vocabulary"):
        cache.cache("mine", str(tmp_path / "c"), vocabulary=small_vocabulary)


def test_a_tfds_data_set_is_a_task_and_mixes_with_files_of_every_format(write_lines, tmp_path):
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it undeclared")
    import tensorflow_datasets as tfds

    class TinyFeedback(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "question": tfds.features.Text(),
                        "answer": tfds.features.Text(),
                        "r": np.float32,
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                reward = float("nan") if i == 7 else i
                yield i, {"question": f"q{i} é", "answer": f"a{i}", "r": reward}

    folder = str(tmp_path / "tfds")
    TinyFeedback(data_dir=folder).download_and_prepare()
    task = tasks.register_tfds_task(
        "tiny",
        "tiny_feedback",
        "triplet",
        data_dir=folder,
        fields={"prompt": "question", "response": "answer", "feedback": "r"},
    )
    assert set(task.splits) == {"train", "validation"}
    metadata = cache.cache("tiny", str(tmp_path / "c"))
    assert sum(metadata.num_examples.values()) == 39
    assert metadata.rejected["train"] == {"nonfinite_feedback": 1}
    prompts = {e.prompt for e in TaskCache(str(tmp_path / "c")).split("train")}
    assert prompts < {f"q{i} é" for i in range(40)}
    # Four formats with different names of fields, and the same tokens of all in one mixture.
    rows = {
        name: [{"prompt": f"{name} {i} é", "response": f"a{i}", "feedback": i} for i in range(20)]
        for name in ("jsonl", "csv", "parquet")
    }
    write_lines(rows["jsonl"], "data.jsonl")
    lines = [f"{row['prompt']};{row['response']};{row['feedback']}\n" for row in rows["csv"]]
    (tmp_path / "data.csv").write_text("Question;response;rating\n" + "".join(lines))
    parquet.write_table(pyarrow.Table.from_pylist(rows["parquet"]), tmp_path / "data.parquet")
    named = {"csv": "prompt=Question,feedback=rating"}
    for name in rows:
        path = str(tmp_path / f"data.{name}")
        tasks.register_jsonl_task(name, "triplet", {"train": path}, fields=named.get(name))
    tasks.register_mixture("all", ["tiny", "jsonl", ("csv", 2.0), "parquet"])
    everything = cache.cache("all", str(tmp_path / "all"))
    assert sum(everything.num_examples.values()) == 39 + 3 * 20
    mixed = [
        e for split in everything.splits for e in TaskCache(str(tmp_path / "all")).split(split)
    ]
    found = {(e.prompt, e.responses[0], float(e.feedback[0])) for e in mixed}
    wanted = {(r["prompt"], r["response"], r["feedback"]) for each in rows.values() for r in each}
    assert found == wanted | {(f"q{i} é", f"a{i}", i) for i in range(40) if i != 7}
    vocabulary = vocabularies.ByteVocabulary()
    assert all(e.inputs.tolist() == [*vocabulary.encode(e.prompt), 1] for e in mixed)


def test_ultrafeedback_as_a_task(write_lines, tmp_path):
    aspects = tasks.ASPECTS
    rows = [
        {
            "source": "truthful_qa" if i == 0 else "flan",
            "instruction": f"question {i}",
            "completions": [
                {
                    "response": f"answer {k}",
                    "overall_score": k,
                    "annotations": {a: {"Rating": str(k + 1)} for a in aspects},
                }
                for k in range(4)
            ],
        }
        for i in range(60)
    ]
    path = write_lines(rows)
    tasks.register_ultrafeedback_task("uf", path)
    metadata = cache.cache("uf", str(tmp_path / "c"))
    assert sum(metadata.num_examples.values()) == 59 * 4
    assert metadata.reward_statistics == RewardStatistics(2.5, pytest.approx(1.25**0.5))
    assert metadata.splits["train"].notes == {"dropped_truthful_qa": 1}
    tasks.register_ultrafeedback_task("uf4", path, kind="multi", responses_per_example=4)
    grouped = cache.cache("uf4", str(tmp_path / "d"))
    assert grouped.responses_per_example == 4
    assert grouped.score_names == tuple(aspects)
    assert sum(grouped.num_examples.values()) == 59


def test_feedback_of_reference_samples_passes_through_tasks_and_mixtures(write_lines, tmp_path):
    def rows(prefix):
        return [
            {
                "prompt": f"{prefix}{i}",
                "response": "r",
                "feedback": i,
                "reference_feedback": [i, 0.5],
            }
            for i in range(30)
        ]

    for name in ("a", "b"):
        path = write_lines(rows(name), f"{name}.jsonl")
        tasks.register_jsonl_task(name, "triplet", {"train": path})
    tasks.register_mixture("both", ["a", "b"], default_rate=1.0)
    for name, number in (("a", 30), ("both", 60)):
        folder = str(tmp_path / name)
        metadata = cache.cache(name, folder)
        assert sum(metadata.num_examples.values()) == number
        assert metadata.reference_samples == 2
        for example in TaskCache(folder).split("train"):
            assert example.reference_feedback.tolist() == [example.feedback[0], 0.5]


@pytest.mark.parametrize("in_mixture", [False, True])
def test_a_missing_file_is_one_clear_line(in_mixture, write_lines, tmp_path, capfd):
    tasks.register_jsonl_task("gone", "triplet", {"train": str(tmp_path / "gone.jsonl")})
    tasks.register_jsonl_task("mine", "triplet", {"train": triplet_file(write_lines)})
    tasks.register_mixture("both", ["mine", "gone"], default_rate=1.0)
    with pytest.raises(DataError) as caught:
        cache.cache("both" if in_mixture else "gone", str(tmp_path / "c"))
    message = str(caught.value)
    assert message == f"No file matches '{tmp_path}/gone.jsonl' (split 'train')."
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_missing_file_of_somebody_elses_task_is_one_line_too(tmp_path):
    seqio.TaskRegistry.add(
        "foreign",
        source=seqio.TextLineDataSource({"train": str(tmp_path / "gone.txt")}),
        preprocessors=[
            lambda ds: ds.map(lambda text: {"inputs": text, "targets": text}),
            seqio.preprocessors.tokenize,
        ],
        output_features={
            name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
            for name in ("inputs", "targets")
        },
    )
    with pytest.raises(DataError, match=r"split 'train' of 'foreign' cannot be read: .*gone") as e:
        cache.cache("foreign", str(tmp_path / "c"), splits=["train"])
    assert "\n" not in str(e.value)


def test_a_missing_file_is_an_error_for_other_readers_of_the_task_as_well(tmp_path):
    task = tasks.register_jsonl_task("gone", "triplet", {"train": str(tmp_path / "gone.jsonl")})
    with pytest.raises(Exception, match=r"gone\.jsonl"):
        list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())


def test_a_cache_of_the_task_with_another_vocabulary_is_refused(
    write_lines, small_vocabulary, tmp_path
):
    """Though nothing but the name says which task it is of."""
    path, folder = triplet_file(write_lines), str(tmp_path / "c")
    tasks.register_jsonl_task("mine", "triplet", {"train": path}, vocabulary="bytes")
    cache.cache("mine", folder)
    data = TaskData(task="mine", cache_dir=folder, feature_lengths={"inputs": 512, "targets": 512})
    data.prepare()
    seqio.TaskRegistry.remove("mine")
    tasks.register_jsonl_task("mine", "triplet", {"train": path}, vocabulary=small_vocabulary)
    with pytest.raises(UserError, match="vocabulary bytes with 0 extra ids instead of sentencepie"):
        data.prepare()
    seqio.TaskRegistry.remove("mine")
    assert data.prepare().name == "mine", "the cache alone is enough to train on"
