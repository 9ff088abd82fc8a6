"""Candidates for the tests of selectors."""

import numpy as np
import pytest

from jaxalign.data.candidates import Annotation, Candidates


@pytest.fixture
def make():
    """Candidates with responses `r0`, `r1` ... of each prompt, from annotations {name: (kind, [array per prompt])}."""

    def made(annotations, responses=None, **fields):
        arrays = [np.array(a, float) for a in next(iter(annotations.values()))[1]]
        texts = responses or [[f"r{k}" for k in range(len(a))] for a in arrays]
        return Candidates(
            [f"p{i}" for i in range(len(arrays))],
            texts,
            {
                name: Annotation(kind, [np.array(v, float) for v in values])
                for name, (kind, values) in annotations.items()
            },
            [
                {"id": i, **{name: values[i] for name, values in fields.items()}}
                for i in range(len(arrays))
            ],
            "c.jsonl",
        )

    return made
