"""seqio vocabularies of the vocabularies that seqio does not have. The functions import seqio (and so TensorFlow) when called."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


def of_tokenizer(vocabulary: Any) -> Any:
    """Returns a `seqio.Vocabulary` with the ids of a `TokenizerVocabulary`, which is its attribute `tokenizer`."""
    return _class()(vocabulary)


@functools.cache
def _class() -> Any:
    import numpy as np
    import seqio
    import tensorflow as tf

    class SeqioTokenizer(seqio.Vocabulary):
        """A tokenizer as a seqio vocabulary; `encode` adds neither EOS nor BOS, as with seqio's others."""

        def __init__(self, tokenizer: Any) -> None:
            super().__init__(extra_ids=0)
            self.tokenizer = tokenizer

        @property
        def bos_id(self) -> int | None:
            prefix = self.tokenizer.prompt_prefix
            return prefix[0] if prefix else None

        @property
        def eos_id(self) -> int:
            return self.tokenizer.eos_id

        @property
        def unk_id(self) -> int | None:
            return self.tokenizer.unk_id if self.tokenizer.unk_id >= 0 else None

        @property
        def _base_vocab_size(self) -> int:
            return self.tokenizer.size

        def _encode(self, s: str) -> Sequence[int]:
            return self.tokenizer.encode(s)

        def _decode(self, ids: Sequence[int]) -> str:
            return self.tokenizer.decode(ids)

        def _encode_tf(self, s: Any) -> Any:
            def encode(text: Any) -> Any:
                # Bytes inside a dataset, an array of one object outside.
                decoded = np.asarray(text, object).item().decode("utf-8")
                return np.asarray(self.tokenizer.encode(decoded), np.int32)

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            return tf.ensure_shape(ids, [None])

        def _decode_tf(self, ids: Any) -> Any:
            def decode(batch: Any) -> Any:
                rows = batch.reshape(-1, batch.shape[-1])
                texts = self.tokenizer.decode_batch([row.tolist() for row in rows])
                return np.array([text.encode() for text in texts], object).reshape(batch.shape[:-1])

            return tf.numpy_function(decode, [ids], tf.string, stateful=False)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, SeqioTokenizer) and self.tokenizer == other.tokenizer

        def __hash__(self) -> int:
            return hash(self.tokenizer)

    return SeqioTokenizer
