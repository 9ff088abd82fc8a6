import pytest

from jaxalign.data import train_vocabulary, vocabularies
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary


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


def test_training_is_deterministic_and_gives_t5s_ids(small_vocabulary, tmp_path):
    again = str(tmp_path / "again.model")
    second = train_vocabulary.train_vocabulary("synthetic_triplets", again, vocab_size=300)
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
