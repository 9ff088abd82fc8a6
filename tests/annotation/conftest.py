"""Small candidates."""

import numpy as np
import pytest

from jaxalign.data.candidates import Annotation, Candidates


@pytest.fixture
def candidates():
    """Three prompts with 2, 3 and 2 responses, feedback, and references."""
    return Candidates(
        ["one", "two words", "three"],
        [["a", "bb"], ["c c", "d", "eee"], ["f", "f"]],
        {
            "feedback": Annotation(
                "scores", [np.array([1.0, 0]), np.array([0.0, 2, 1]), np.array([1.0, 1])]
            )
        },
        [{"id": 0, "references": ["a"]}, {"id": 1, "references": ["d"]}, {"id": 2, "target": "f"}],
    )
