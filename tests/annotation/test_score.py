"""Stored scores are never taken for those of another checkpoint."""

import numpy as np
import pytest

from jaxalign.annotation.score import refuse_other_scores
from jaxalign.data.cache import cache
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError


def test_a_name_that_another_checkpoint_has_is_refused(tmp_path):
    lines = "".join(f'{{"prompt": "p {i}", "response": "r", "feedback": {i}}}\n' for i in range(9))
    (tmp_path / "my.jsonl").write_text(lines)
    cache("mine", str(tmp_path / "cache"), train_file=str(tmp_path / "my.jsonl"), splits=("train",))
    folder = TaskCache(str(tmp_path / "cache"))
    scores = np.zeros((len(folder.split("train")), 1), np.float32)
    info = {"role": "reward", "checkpoint": "/runs/judge", "step": 7}
    folder.write_stored("train", "mine", scores, info)
    refuse_other_scores(folder, ["train"], "mine", info | {"checkpoint": "/moved/judge"})
    for other in ({"step": 8}, {"checkpoint": "/runs/other"}, {"role": "policy"}):
        with pytest.raises(
            UserError, match=r"split train has scores 'mine' already, of /runs/judge"
        ):
            refuse_other_scores(folder, ["train"], "mine", info | other)
    # The reference's scores that training stores name no checkpoint; their own name does.
    folder.write_stored("train", "reference", scores, {"run_id": "a", "step": 3})
    refuse_other_scores(folder, ["train"], "reference", info)
