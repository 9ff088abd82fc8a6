"""A `tokenizer.json` of Hugging Face's library tokenizers as a vocabulary, with the library's own ids.

The library is optional. It reads the file as data: a tokenizer runs no code.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxalign import untrusted
from jaxalign.data.sentencepiece_models import is_sentinel
from jaxalign.data.token_ids import EOS_ID, PAD_ID, until_eos
from jaxalign.errors import UserError, first_line

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
_MAX_BYTES = 1 << 27  # Gemma's file has 34 MB
# Special tokens that are neither PAD nor EOS.
_OTHERS = {"<unk>", "[UNK]", "<s>", "<bos>", "[BOS]", "[CLS]", "[SEP]", "[MASK]", "<mask>"}
# Parts of the file that do not change the ids of a text here: texts are cut and padded by the data code, and EOS is put behind them.
_NO_IDS = ("version", "truncation", "padding", "post_processor")


class TokenizerVocabulary:
    """A `tokenizer.json` whose token 0 is PAD and whose token 1 is EOS, as those of T5, umT5 and T5Gemma.

    Attributes:
      path: the file.
      model: its content.
      sentinels: the number of tokens `<extra_id_N>`, which belong to the file: `extra_ids` is 0 or that number.
      prompt_prefix: the tokens that the tokenizer puts before a text, such as Gemma's BOS. They begin prompts, and not responses.

    Raises:
      UserError: the library is missing, or the file is no tokenizer of this kind.
    """

    pad_id, eos_id = PAD_ID, EOS_ID
    lossless = False

    def __init__(
        self, path: str | os.PathLike[str], extra_ids: int = 0, *, model: bytes | None = None
    ):
        self.path = os.fspath(path)
        self.model = _read(self.path) if model is None else model
        self.sha256 = hashlib.sha256(self.model).hexdigest()
        self._tokenizer = _load(self.model, self.path)
        self._parsed = _parse(self.model, self.path)
        self._check_special_tokens(_config_beside(self.path) if model is None else {})
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._size = max(vocab.values()) + 1
        self.sentinels = sum(map(is_sentinel, vocab))
        if extra_ids not in (0, self.sentinels):
            raise UserError(
                f"{self.path} has {self.sentinels} sentinels (<extra_id_0> ...) of its own, so extra_ids is 0 or {self.sentinels}, not "
                f"{extra_ids}"
            )
        self.extra_ids = 0
        self.unk_id = self._unknown()
        self.prompt_prefix = self._prefix()

    @property
    def size(self) -> int:
        return self._size

    @functools.cached_property
    def digest(self) -> str:
        """Returns a digest of everything that determines ids: equal digests mean equal ids."""
        kept = {key: value for key, value in self._parsed.items() if key not in _NO_IDS}
        content = [kept, self.prompt_prefix]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_ends(self) -> bytes:
        """Returns the file for programs that take a text's first and last tokens from it: prompts are [prompt_prefix, text, EOS] there."""
        if self._tokenizer.encode("a").ids == [*self.prompt_prefix, *self.encode("a"), EOS_ID]:
            return self.model
        tokens = self.table()
        used = [*self.prompt_prefix, EOS_ID]
        before, end = (
            [{"SpecialToken": {"id": tokens[token], "type_id": 0}} for token in part]
            for part in (self.prompt_prefix, (EOS_ID,))
        )
        one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        processor = {
            "type": "TemplateProcessing",
            "single": [*before, one, *end],
            "pair": [*before, one, *end, other, *end],
            "special_tokens": {
                str(tokens[token]): {"id": tokens[token], "ids": [token], "tokens": [tokens[token]]}
                for token in used
            },
        }
        content = self._parsed | {"post_processor": processor}
        return (json.dumps(content, ensure_ascii=False) + "\n").encode()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text alone, without EOS and BOS."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first EOS, without PAD; ids outside the vocabulary are left out."""
        return self._tokenizer.decode(self._known(ids), skip_special_tokens=False)

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        return self._tokenizer.decode_batch(
            list(map(self._known, batch)), skip_special_tokens=False
        )

    def table(self) -> list[str | None]:
        """Returns the text of every id; None for an id without a token."""
        return [self._tokenizer.id_to_token(index) for index in range(self._size)]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "path": self.path, "extra_ids": 0, "sha256": self.sha256}

    def to_seqio(self) -> Any:
        """Returns a seqio vocabulary with the same ids (imports TensorFlow)."""
        from jaxalign.data import seqio_vocabulary

        return seqio_vocabulary.of_tokenizer(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(("tokenizer", self.sha256))

    def _known(self, ids: Iterable[int]) -> list[int]:
        return [token for token in until_eos(ids) if 0 <= token < self._size]

    def _check_special_tokens(self, config: Mapping[str, Any]) -> None:
        found = [self._tokenizer.id_to_token(index) for index in (PAD_ID, EOS_ID)]
        named = [config.get("pad_token"), config.get("eos_token")]
        stated = [name.get("content") if isinstance(name, dict) else name for name in named]
        special = {
            token.get("id")
            for token in self._parsed.get("added_tokens") or []
            if token.get("special")
        }
        fits = all(name in (None, token) for name, token in zip(stated, found, strict=True))
        if not fits or not {PAD_ID, EOS_ID} <= special or not _OTHERS.isdisjoint(found):
            raise UserError(
                f"{self.path} has the tokens 0 {found[0]!r} and 1 {found[1]!r}; they must be PAD and EOS, as in T5 and T5Gemma (a new "
                "tokenizer gets them from special_tokens=['<pad>', '</s>', '<unk>'] of its trainer)"
            )

    def _unknown(self) -> int:
        """Returns the id of the unknown token; -1 if every text has known tokens, as with bytes."""
        model = self._parsed["model"]
        token = model.get("unk_token")
        found = model.get("unk_id") if token is None else self._tokenizer.token_to_id(token)
        return found if isinstance(found, int) else -1

    def _prefix(self) -> tuple[int, ...]:
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), None)
        after = None if start is None else whole[start + len(plain) :]
        if start is None or after not in ([], [EOS_ID]):
            raise UserError(
                f"{self.path} puts other tokens after a text than EOS, or changes the text's own ({plain} becomes {whole}); it is not "
                "the tokenizer of an encoder-decoder that jaxalign trains"
            )
        return tuple(whole[:start])


def _read(path: str) -> bytes:
    try:
        return untrusted.read_bytes(os.path.expanduser(path), _MAX_BYTES)
    except OSError as error:
        raise UserError(f"Cannot read the tokenizer {path}: {error.strerror}.") from error


def _load(model: bytes, path: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            f"the vocabulary {path} needs the library tokenizers: pip install 'jaxalign[tokenizers]' or tokenizers"
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(model)
    except Exception as error:
        # The library raises plain exceptions.
        raise UserError(
            f"{path} is no tokenizer.json of the library tokenizers: {first_line(error)}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _parse(model: bytes, path: str) -> dict[str, Any]:
    parsed = json.loads(model)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
        raise UserError(f"{path} is no tokenizer.json: it has no model")
    return parsed


def _config_beside(path: str) -> dict[str, Any]:
    file = os.path.join(os.path.dirname(os.path.expanduser(path)), CONFIG)
    return untrusted.read_json_object(file) if os.path.isfile(file) else {}
