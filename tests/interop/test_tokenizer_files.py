"""Tokenizers of Hugging Face folders: read as our vocabularies, written so that transformers gives the same ids."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.data import sentencepiece_models
from jaxalign.data.recorded_vocabulary import RecordedVocabulary
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.data.vocabularies import ByteVocabulary, SentencePieceVocabulary
from jaxalign.errors import UserError
from jaxalign.interop import tokenizer_files
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, RUN, T5X
from jaxalign.interop.convert import convert
from jaxalign.networks.config import T5Config
from jaxalign.runs.folder import Run

CONFIG = T5Config(
    vocab_size=512,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
# Another interpreter whose transformers is compared with, so that versions can take turns.
PYTHON = os.environ.get("TRANSFORMERS_PYTHON", sys.executable)
WORDS = [
    "golden",
    "lion",
    "serves",
    "cheap",
    "thai",
    "food",
    "near",
    "the",
    "river;",
    "is",
    "it",
    "kid-friendly?",
    "naïve",
    "café",
]
TEXTS = [
    *(" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 12)) for i in range(1, 40)),
    "see SLOT_NAME here",
    "xSLOT_NAMEy SLOT_AREASLOT_NAME",
    " leading,  double\tand\nlines ",
    "ﬁn Ⅳ ｆｕｌｌ ☃☃ unknown 日本語",
    "a <extra_id_0> b <extra_id_3>",
    "",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """SentencePiece models of the kinds there are, by name."""
    folder = tmp_path_factory.mktemp("models")
    symbols = {"user_defined_symbols": ["SLOT_NAME", "SLOT_AREA"]}
    for name, options in {
        "unigram": {"model_type": "unigram", "vocab_size": 70},
        "unigram_symbols": {"model_type": "unigram", "vocab_size": 70, **symbols},
        "bpe": {"model_type": "bpe", "vocab_size": 110},
        "bpe_symbols": {"model_type": "bpe", "vocab_size": 110, **symbols},
    }.items():
        train_sentencepiece(TEXTS[:40], str(folder / f"{name}.model"), **options)
    proto = sentencepiece_models.parse((folder / "unigram.model").read_bytes(), "unigram")
    extended = sentencepiece_models.with_sentinels(proto, 100)
    (folder / "own_sentinels.model").write_bytes(extended.SerializeToString())
    return folder


def exported(folder, vocabulary):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_files.write(str(folder), vocabulary, {})
    return folder


@pytest.mark.parametrize("extra_ids", [0, 7, 100])
@pytest.mark.parametrize("name", ["unigram", "unigram_symbols", "bpe", "bpe_symbols"])
def test_what_is_written_is_read_back(models, tmp_path, name, extra_ids):
    vocabulary = SentencePieceVocabulary(models / f"{name}.model", extra_ids)
    recorded = tokenizer_files.read(str(exported(tmp_path / "out", vocabulary)))
    assert recorded.counted
    assert recorded.load() == vocabulary


def test_sentinels_of_the_model_itself_and_bytes_are_read_back(models, tmp_path):
    own = SentencePieceVocabulary(models / "own_sentinels.model", 100)
    recorded = tokenizer_files.read(str(exported(tmp_path / "own", own)))
    assert (recorded.load().sentinels, recorded.load().size) == (100, own.size)
    assert recorded.load() == own
    read = tokenizer_files.read(str(exported(tmp_path / "bytes", ByteVocabulary(10))))
    assert read.load() == ByteVocabulary(10)


@pytest.mark.parametrize("name", ["unigram", "own_sentinels"])
def test_a_tokenizer_json_alone_is_the_model_that_it_was_made_from(models, tmp_path, name):
    vocabulary = SentencePieceVocabulary(models / f"{name}.model", 100)
    folder = exported(tmp_path / "out", vocabulary)
    (folder / "spiece.model").unlink()
    (folder / "tokenizer_config.json").unlink()
    recorded = tokenizer_files.read(str(folder))
    assert recorded.agrees_with(RecordedVocabulary(vocabulary.to_dict()))
    read = recorded.load()
    assert [read.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "its model is 'BPE'"),
        ({"normalizer": {"type": "Lowercase"}}, "it normalises text with 'Lowercase'"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "it splits text with"),
        ({"added_tokens": [{"id": 300, "content": "{"}]}, "gives '{' the id 300"),
        ({"post_processor": {"type": "BertProcessing"}}, "does not put </s> alone"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused_without_the_library(
    models, tmp_path, monkeypatch, change, message
):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    folder = exported(tmp_path / "out", SentencePieceVocabulary(models / "unigram.model", 0))
    (folder / "spiece.model").unlink()
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=f"{message}.*needs the library tokenizers"):
        tokenizer_files.read(str(folder))


def test_tokens_that_were_added_later_are_refused_and_sentinels_are_not(models, tmp_path):
    vocabulary = SentencePieceVocabulary(models / "unigram.model", 3)
    folder = exported(tmp_path / "out", vocabulary)
    size = vocabulary.size
    sentinels = {f"<extra_id_{i}>": size - 1 - i for i in range(3)}
    (folder / "added_tokens.json").write_text(json.dumps(sentinels))
    assert tokenizer_files.read(str(folder)).load() == vocabulary
    (folder / "added_tokens.json").write_text(json.dumps(sentinels | {"{": size}))
    with pytest.raises(UserError, match=rf"added_tokens\.json gives '{{' the id {size}"):
        tokenizer_files.read(str(folder))
    (folder / "added_tokens.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {str(size): {"content": "}"}, "0": {"content": "<pad>"}}
    config |= {"added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"tokenizer_config\.json gives '}}' the id {size}"):
        tokenizer_files.read(str(folder))


def test_an_export_is_read_back_with_its_sentinels_and_an_old_one_asks_for_them(
    models, values, make_checkpoint, tmp_path
):
    config = CONFIG.replace(vocab_size=96)
    run = make_checkpoint(
        RUN, values(config), config, vocabulary=str(models / "unigram.model"), extra_ids=5
    )
    recorded = Run(run).description.vocabulary.to_json()
    assert recorded["extra_ids"] == 5
    hf = str(tmp_path / "hf")
    convert(checkpoint=run, output=hf, to=HUGGING_FACE)
    again = convert(checkpoint=hf, output=str(tmp_path / "again"))["output"]
    assert Run(again).description.vocabulary.extra_ids == 5
    with pytest.raises(UserError, match=r"--extra_ids=100, but .* has 5 sentinels"):
        convert(checkpoint=hf, output=str(tmp_path / "no"), extra_ids=100)
    other = str(models / "bpe.model")
    with pytest.raises(UserError, match=r"--vocabulary is the SentencePiece model .*, but .* has"):
        convert(checkpoint=hf, output=str(tmp_path / "no"), vocabulary=other, extra_ids=5)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        Path(hf, name).unlink()
    with pytest.raises(UserError, match=r"but the embedding table 96 rows; .* --extra_ids=N"):
        convert(checkpoint=hf, output=str(tmp_path / "no"))
    counted = convert(checkpoint=hf, output=str(tmp_path / "counted"), extra_ids=0)["output"]
    assert Run(counted).description.vocabulary.extra_ids == 0


def test_a_t5x_checkpoint_gets_the_tokenizer_that_is_given(
    models, values, make_checkpoint, tmp_path
):
    checkpoint = make_checkpoint(T5X, values(CONFIG), CONFIG)
    said = convert(checkpoint=checkpoint, output=str(tmp_path / "bare"), to=HUGGING_FACE)
    assert "no tokenizer is in it" in said["message"]
    given = {"vocabulary": str(models / "unigram.model"), "extra_ids": 100}
    convert(checkpoint=checkpoint, output=str(tmp_path / "out"), to=HUGGING_FACE, **given)
    recorded = tokenizer_files.read(str(tmp_path / "out"))
    assert recorded.load() == SentencePieceVocabulary(models / "unigram.model", 100)


_COMPARE = """
import json, sys
from transformers import AutoTokenizer, T5Tokenizer
texts, folders = json.load(open(sys.argv[1]))
found = {}
for name, folder in folders.items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found[name] = {"size": len(tokenizer), "ids": [tokenizer(text)["input_ids"] for text in texts]}
T5Tokenizer.from_pretrained(folders["unigram-100"]).save_pretrained(sys.argv[2])
json.dump(found, open(sys.argv[3], "w"))
"""


def test_transformers_gives_the_same_ids_and_what_it_saves_is_read(models, tmp_path):
    tried = subprocess.run([PYTHON, "-c", "import transformers"], capture_output=True)
    if tried.returncode:
        pytest.skip("transformers is not installed (pip install jaxalign[transformers])")
    vocabularies = {"bytes": ByteVocabulary(125)}
    for path in sorted(models.glob("*.model")):
        for extra_ids in (0, 100):
            vocabularies[f"{path.stem}-{extra_ids}"] = SentencePieceVocabulary(path, extra_ids)
    folders = {name: str(exported(tmp_path / name, v)) for name, v in vocabularies.items()}
    plain = [text for text in TEXTS if "<extra_id" not in text]
    (tmp_path / "in.json").write_text(json.dumps([TEXTS, folders]))
    places = [str(tmp_path / name) for name in ("in.json", "saved", "out.json")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([PYTHON, "-c", _COMPARE, *places], check=True, timeout=600, env=environment)
    found = json.loads((tmp_path / "out.json").read_text())
    for name, vocabulary in vocabularies.items():
        # Sentinels in text are read where there are some; of bytes, jaxalign reads none.
        texts = TEXTS if vocabulary.sentinels and name != "bytes" else plain
        wanted = [[*vocabulary.encode(text), 1] for text in texts]
        ids = [found[name]["ids"][TEXTS.index(text)] for text in texts]
        assert ids == wanted, name
        assert found[name]["size"] == vocabulary.size, name
    recorded = tokenizer_files.read(str(tmp_path / "saved"))
    assert recorded.agrees_with(RecordedVocabulary(vocabularies["unigram-100"].to_dict()))
