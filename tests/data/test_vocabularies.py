import dataclasses
import json
import re
from pathlib import Path

import pytest

from jaxalign.data import bundled_sources, sentencepiece_models, train_vocabulary, vocabularies
from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.sources import JsonlSource
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary
from jaxalign.errors import UserError


def test_bytes_are_shifted_by_three():
    vocabulary = ByteVocabulary()
    assert vocabulary.size == 259
    assert vocabulary.encode("ab é") == [100, 101, 35, 198, 172]
    assert vocabulary.decode([100, 0, 101, 1, 102]) == "ab"
    assert vocabulary.decode(vocabulary.encode("naïve ☃")) == "naïve ☃"


def test_decoding_stops_at_eos_and_drops_padding(small_vocabulary):
    vocabulary = SentencePieceVocabulary(small_vocabulary)
    ids = vocabulary.encode("the golden lion")
    assert vocabulary.eos_id not in ids
    assert vocabulary.decode([*ids, 1, *ids, 0, 0]) == "the golden lion"
    assert vocabulary.decode([*ids, 0, 0]) == "the golden lion"


def test_a_batch_is_decoded_like_its_texts(small_vocabulary):
    for vocabulary in (ByteVocabulary(), SentencePieceVocabulary(small_vocabulary, 100)):
        texts = ["the golden lion", "", "a  snow ☃", "é"]
        batch = vocabulary.encode_batch(texts)
        assert batch == [vocabulary.encode(text) for text in texts]
        ids = batch[0]
        batch += [[*ids, 1, *ids], [0, *ids], [*ids, vocabulary.size + 7], [vocabulary.size - 1]]
        assert vocabulary.decode_batch(batch) == [vocabulary.decode(ids) for ids in batch]
        assert vocabulary.encode_batch([]) == vocabulary.decode_batch([]) == []


def test_a_bundled_task_is_trained_on_by_its_name(tmp_path, monkeypatch):
    small = bundled_sources.SyntheticSource("triplet", 200, 1)
    monkeypatch.setitem(bundled_sources.BUNDLED, "synthetic_triplets", lambda: small)
    path = str(tmp_path / "v.model")
    vocabulary = train_vocabulary.train_vocabulary("synthetic_triplets", path, vocab_size=150)
    assert vocabulary.size == 150 and vocabulary.unk_id not in vocabulary.encode("golden lion")


def test_training_is_deterministic_and_gives_t5s_ids(small_vocabulary, tmp_path):
    again = str(tmp_path / "again.model")
    texts = str(Path(small_vocabulary).with_name("synthetic.triplets.train.jsonl"))
    second = train_vocabulary.train_vocabulary(texts, again, kind="triplet", vocab_size=300)
    first = SentencePieceVocabulary(small_vocabulary)
    assert first.sha256 == second.sha256
    assert first.size == 300
    assert (first.pad_id, first.eos_id, first.unk_id) == (0, 1, 2)


def test_user_defined_symbols_are_one_piece(write_lines, tmp_path):
    path = write_lines([{"prompt": "SLOT_NAME is nice", "response": "near SLOT_AREA indeed"}] * 3)
    vocabulary = train_vocabulary.train_vocabulary(
        path,
        str(tmp_path / "v.model"),
        vocab_size=60,
        user_defined_symbols=["SLOT_NAME", "SLOT_AREA"],
    )
    pieces = vocabulary.pieces("see SLOT_NAME")
    assert "SLOT_NAME" in pieces
    assert vocabulary.decode(vocabulary.encode("see SLOT_NAME")) == "see SLOT_NAME"


def test_a_file_of_one_prompt_gives_a_vocabulary_whatever_split_it_is_in(tmp_path):
    path = tmp_path / "data.jsonl"
    for number in range(99):  # one of ten prompts is in the split for validation
        lines = [{"prompt": f"what is {number}?", "response": f"red disc {i}"} for i in range(9)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if not list(JsonlSource({"train": str(path)}, "seq2seq").records("train")):
            break
    else:
        pytest.fail("no prompt is in the split for validation")
    output = str(tmp_path / "x.model")
    made = train_vocabulary.train_vocabulary(str(path), output, vocab_size=40)
    assert made.unk_id not in made.encode("red disc 7")


@pytest.mark.parametrize("extra_ids", [0, 7])
def test_descriptions_round_trip(small_vocabulary, extra_ids):
    for vocabulary in (
        ByteVocabulary(extra_ids),
        SentencePieceVocabulary(small_vocabulary, extra_ids),
    ):
        assert vocabularies.vocabulary_from_dict(vocabulary.to_dict()) == vocabulary
    assert vocabularies.vocabulary_from_spec("bytes") == ByteVocabulary()
    assert vocabularies.vocabulary_from_spec(small_vocabulary) == SentencePieceVocabulary(
        small_vocabulary
    )


def test_a_changed_model_file_is_refused(small_vocabulary):
    spec = SentencePieceVocabulary(small_vocabulary).to_dict() | {"sha256": "0" * 64}
    with pytest.raises(ValueError, match="not the one this data was made with"):
        vocabularies.vocabulary_from_dict(spec)


def test_a_model_without_t5s_ids_is_refused_naming_them(shared_dir):
    with pytest.raises(ValueError, match=r"pad=-1, eos=2, unk=0"):
        SentencePieceVocabulary(shared_dir / "data/tokenizers/spm_botchan_1k.model")


def test_t5s_real_vocabulary(shared_dir):
    """Ids read off T5's published vocabulary: the sentinels count down from 32,099."""
    path = str(shared_dir / "data/tokenizers/t5_cc_all_32000.model")
    vocabulary = SentencePieceVocabulary(path, extra_ids=100)
    assert vocabulary.size == 32100
    assert vocabulary.encode("The house is wonderful.") == [37, 629, 19, 1627, 5]
    assert vocabulary.encode("a <extra_id_0> b <extra_id_99>") == [3, 9, 32099, 3, 115, 32000]
    assert vocabulary.decode([37, 629, 32099, 1]) == "The house <extra_id_0>"


def test_missing_model_is_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read the SentencePiece model .*nothing.model"):
        SentencePieceVocabulary(tmp_path / "nothing.model")


def with_own_sentinels(path, count, output):
    """The model with sentinels among its own pieces, as mT5's."""
    proto = sentencepiece_models.parse(Path(path).read_bytes(), "model")
    Path(output).write_bytes(sentencepiece_models.with_sentinels(proto, count).SerializeToString())
    return str(output)


def test_sentinels_that_a_model_has_are_counted_and_not_added_again(small_vocabulary, tmp_path):
    path = with_own_sentinels(small_vocabulary, 100, tmp_path / "own.model")
    added = SentencePieceVocabulary(small_vocabulary, 100)
    for extra_ids in (0, 100):
        own = SentencePieceVocabulary(path, extra_ids)
        assert (own.size, own.sentinels, own.extra_ids) == (400, 100, 0)
        text = "the golden lion <extra_id_0>"
        assert own.encode(text) == added.encode(text)
        assert vocabularies.vocabulary_from_dict(own.to_dict()) == own
    with pytest.raises(UserError, match=r"has 100 sentinels .* extra_ids is 0 or 100, not 50"):
        SentencePieceVocabulary(path, 50)


def test_two_vocabularies_agree_where_every_text_has_the_same_ids(small_vocabulary, tmp_path):
    path = with_own_sentinels(small_vocabulary, 100, tmp_path / "own.model")
    recorded = {
        name: RecordedVocabulary(vocabulary.to_dict())
        for name, vocabulary in {
            "none": SentencePieceVocabulary(small_vocabulary),
            "added": SentencePieceVocabulary(small_vocabulary, 100),
            "own": SentencePieceVocabulary(path),
            "bytes": ByteVocabulary(),
        }.items()
    }
    agreeing = {
        (one, other)
        for one in recorded
        for other in recorded
        if recorded[one].agrees_with(recorded[other])
    }
    assert agreeing == {(name, name) for name in recorded} | {("added", "own"), ("own", "added")}
    uncounted = dataclasses.replace(recorded["added"], counted=False)
    assert uncounted.agrees_with(recorded["none"])
    message = r"than the run runs/a: with the SentencePiece model .* not bytes with 0 extra ids.*set VOCABULARY = 'bytes'"
    with pytest.raises(UserError, match=message):
        require_same_vocabulary("the run runs/a", recorded["bytes"], recorded["none"])


def test_a_tokenizer_json_is_not_taken_for_a_model(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {}}')
    with pytest.raises(UserError, match=r"is a JSON file.*jaxalign convert"):
        SentencePieceVocabulary(path)


def test_fewer_pieces_than_asked_for_and_byte_pairs_are_said(tmp_path, capsys):
    texts = ["a b c d e f g h", "b c d e"] * 5
    train_sentencepiece(texts, str(tmp_path / "a.model"), vocab_size=5000)
    said = capsys.readouterr().err
    assert re.search(
        r"a.model is smaller than asked for: a unigram .* has only \d+ of the 5000", said
    )
    # The size that it names can be trained.
    most = int(re.search(r"--vocab_size=(\d+) gives a byte-pair model", said)[1])
    assert train_sentencepiece(texts, str(tmp_path / "a.model"), vocab_size=most).size == most
    assert f"a.model is a byte-pair model (BPE) of {most} pieces" in capsys.readouterr().err
    train_sentencepiece(texts, str(tmp_path / "u.model"), vocab_size=5000, model_type="unigram")
    assert re.search(r"u.model: a unigram .* more text gives more$", capsys.readouterr().err)
    sentences = [f"the {word} sings" for word in ("nightingale", "blackbird", "chaffinch")]
    train_sentencepiece(sentences, str(tmp_path / "b.model"), vocab_size=45)
    said = capsys.readouterr().err
    assert "b.model is a byte-pair model (BPE)" in said
    with pytest.raises(UserError, match=r"cannot train 3 pieces .*c.model: [^\[(]*smaller than"):
        train_sentencepiece(texts, str(tmp_path / "c.model"), vocab_size=3)
    with pytest.raises(UserError, match=rf"cannot train 5000 .*: at most {most}; lower"):
        train_sentencepiece(texts, str(tmp_path / "d.model"), vocab_size=5000, model_type="bpe")


class TestTrainVocabulary:
    """`jaxalign vocabulary` on files."""

    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "d").mkdir()
        for name in "ab":
            lines = [
                f'{{"prompt": "say {name}{i}", "response": "word{i % 7} {name}"}}'
                for i in range(40)
            ]
            (tmp_path / "d" / f"{name}.jsonl").write_text("\n".join(lines))

    def test_a_pattern_names_several_files(self, files):
        vocabulary = train_vocabulary.train_vocabulary("d/*.jsonl", "v.model", vocab_size=40)
        assert vocabulary.size > 10

    @pytest.mark.parametrize("name", ["d/*.json", "d/c.jsonl", "c.jsonl"])
    def test_a_file_that_is_not_there_is_said_with_the_flag(self, files, name):
        with pytest.raises(UserError, match=r"no file matches .*correct --task_or_file"):
            train_vocabulary.train_vocabulary(name, "v.model")

    def test_a_task_that_is_not_there_is_said_with_those_there_are(self, files):
        with pytest.raises(UserError, match=r"neither a file nor a task .*synthetic_triplets"):
            train_vocabulary.train_vocabulary("synthetic_triplet", "v.model")

    def test_an_output_that_exists_is_kept(self, files, capsys):
        first = train_vocabulary.train_vocabulary("d/a.jsonl", "v.model", vocab_size=40)
        again = train_vocabulary.train_vocabulary("d/a.jsonl", "v.model", vocab_size=40)
        assert first == again
        # Messages name the path that the user gave.
        assert set(re.findall(r"\S*\.model\S*", capsys.readouterr().err)) == {"v.model"}
        with pytest.raises(UserError, match="exists already and is another model; --overwrite"):
            train_vocabulary.train_vocabulary("d/b.jsonl", "v.model", vocab_size=40)
        assert vocabularies.SentencePieceVocabulary("v.model") == first
        train_vocabulary.train_vocabulary("d/b.jsonl", "v.model", vocab_size=40, overwrite=True)
        assert sorted(path.name for path in Path().iterdir()) == ["d", "v.model"]

    def test_long_texts_are_read_whole(self, tmp_path, monkeypatch):
        text = "ab cd " * 20_000 + "zebra " * 20_000
        (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": text, "response": text}))
        vocabulary = train_vocabulary.train_vocabulary(
            str(tmp_path / "long.jsonl"), str(tmp_path / "v.model"), vocab_size=20
        )
        assert vocabulary.unk_id not in vocabulary.encode("zebra")
