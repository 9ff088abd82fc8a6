"""One step of SFT and one of DRO-V, pinned."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxalign.objectives.dro import DROV
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.partitioning import MeshShape

PATH = Path(__file__).resolve().parent.parent / "goldens" / "one_step.json"
NORMS = ("gradient_norm", "update_norm", "parameter_norm")
MESSAGE = (
    "One training step gives other numbers than it did. Update tests/goldens/one_step.json (run this test with "
    "JAXALIGN_UPDATE_GOLDENS=1) only for a change that is meant to alter numbers: initialisation, a loss, an optimizer's default. "
    "Say so in the changelog, before and after. A change of speed, layout or style must not end here."
)


@pytest.mark.parametrize("name", ["sft", "dro_v"])
def test_one_step_is_what_it_was(world, name):
    objective = {
        "sft": SFT(policy=world.policy, label_smoothing=0.1),
        "dro_v": DROV(policy=world.policy, value=world.value, temperature=0.5),
    }[name]
    (metrics,), _ = world.train(objective, MeshShape(), 1, steps=1)
    names = ["loss", *(f"{role}/{norm}" for role in objective.trained() for norm in NORMS)]
    if name == "dro_v":
        names += ["policy_loss", "value_loss", "residual", "log_ratio", "log_prob", "value"]
    found = {key: metrics[key] for key in names}
    goldens = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    if os.environ.get("JAXALIGN_UPDATE_GOLDENS"):
        goldens[name] = found
        PATH.write_text(json.dumps(goldens, indent=2) + "\n", encoding="utf-8")
    assert found.keys() == goldens[name].keys(), MESSAGE
    for key, value in goldens[name].items():
        np.testing.assert_allclose(
            found[key], value, rtol=1e-4, atol=1e-6, err_msg=f"{key}. {MESSAGE}"
        )
