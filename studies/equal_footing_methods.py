"""Methods of the equal-footing study: the form of the data that each reads, and its search space."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from studies.equal_footing_forms import RATINGS

LEARNING_RATES = (3e-5, 1e-4)
MORE_LEARNING_RATES = (3e-5, 5e-5, 7e-5, 1e-4)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
      family: family of methods, for the table.
      form: the form of the data that the method reads.
      strength: macro of the method's main hyperparameter in the gin file, and two values.
      macros: further macros that the data require, by task.
      gin: gin files; by default one file with the method's name.
      sampling: how the data pipeline draws examples.
      needs_advantages: whether the method reads stored advantages.
      tasks: tasks on which the method can be trained.
    """

    family: str
    form: str = "triplets"
    strength: tuple[str, tuple[Any, Any]] | None = None
    macros: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    gin: tuple[str, ...] = ()
    sampling: str = "uniform"
    needs_advantages: bool = False
    tasks: tuple[str, ...] = ("rnnlg", "nlg_ratings")

    @property
    def settings(self) -> list[tuple[Any, float]]:
        """The four settings of strength and learning rate; a method without a strength gets four learning rates."""
        if self.strength is None:
            return [(None, rate) for rate in MORE_LEARNING_RATES]
        return list(itertools.product(self.strength[1], LEARNING_RATES))


# Feedback above the threshold is a thumb up: no slot error; a rating above the middle of the scale's upper half.
_THUMBS = {
    "rnnlg": {"DESIRABLE_THRESHOLD": -1e-6},
    "nlg_ratings": {"DESIRABLE_THRESHOLD": RATINGS.desirable_threshold},
}
# The default multiplies DRO's learning rate by 1 / tau, so that its search would differ from that of the other methods.
_PLAIN = {task: {"RESCALE": "none"} for task in ("rnnlg", "nlg_ratings")}
_TAU = ("TEMPERATURE", (0.3, 1.0))
_BETA = ("BETA", (0.1, 1.0))
# In the order in which they run.
METHODS: dict[str, Method] = {
    "dro_v": Method("DRO", strength=_TAU, macros=_PLAIN),
    "kto": Method("unpaired", strength=("BETA", (1.0, 5.0))),
    "dpo": Method("pairs", "pairs", strength=_BETA),
    "filtered_sft": Method("likelihood", strength=("THRESHOLD", (0.0, 0.25))),
    "nll": Method("likelihood"),
    "best_of_n_sft": Method("likelihood", form="best", gin=("sft",), tasks=("rnnlg",)),
    "agro": Method("lists", "groups", strength=_TAU),
    "rebel": Method("pairs", "pairs", strength=("ETA", (1.0, 3.0))),
    "ipo": Method("pairs", "pairs", strength=("TAU", (0.1, 1.0))),
    "bco": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "a_lol": Method(
        "advantage",
        strength=("RATIO_CLIP", (0.9, None)),
        sampling="priority",
        needs_advantages=True,
    ),
    "infonca": Method("lists", "groups", strength=("BETA", (0.1, 1.0))),
    "zero_value": Method("unpaired", strength=_TAU),
    "osp_logistic": Method(
        "pairs", "pairs", strength=_BETA, macros={"rnnlg": {"PREFERENCE_SCALE": 0.25}}
    ),
    "nca": Method("lists", "groups", strength=("BETA", (0.1, 1.0))),
    "slic": Method("pairs", "pairs", strength=("MARGIN", (1.0, 5.0))),
    "rpo": Method(
        "pairs",
        "pairs",
        strength=_BETA,
        # The published scale divides DPO's gradient by the batch size, which would not be fair at equal learning rates.
        macros={task: {"SCALE": "row_sum"} for task in ("rnnlg", "nlg_ratings")},
    ),
    "reward_weighted_regression": Method("likelihood", strength=_TAU),
    "apo_zero_unpaired": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "dro_p": Method("DRO", strength=_TAU, macros=_PLAIN),
    "kto_reference": Method("unpaired", strength=_BETA, macros=_THUMBS),
    "hinge": Method("pairs", "pairs", strength=_BETA),
    "spa": Method("pairs", "pairs", strength=_BETA),
    "robust_dpo": Method("pairs", "pairs", strength=_BETA),
    "cdpo": Method("pairs", "pairs", strength=_BETA),
    "oreo": Method("token level", strength=("BETA", (0.03, 0.3))),
    "weighted_behaviour_cloning": Method("likelihood", form="goodness", sampling="reward"),
    "reward_partitioning": Method("lists", "groups", strength=("TEMPERATURE", (1.0, 5.0))),
    "nca_pair": Method("pairs", "pairs", strength=_BETA),
    # JPO's pairs across prompts need feedback on one scale; margins are not on one scale.
    "jpo": Method("pairs", "groups", strength=_BETA),
    "a_lol_seq": Method(
        "advantage",
        strength=("RATIO_CLIP", (0.9, None)),
        sampling="priority",
        needs_advantages=True,
    ),
    "a_lol_reference_free": Method("advantage", sampling="priority", needs_advantages=True),
    "a_lol_kl": Method(
        "advantage", strength=("BETA", (0.05, 0.3)), sampling="priority", needs_advantages=True
    ),
    "r_lol": Method(
        "advantage", form="goodness", strength=("RATIO_CLIP", (0.9, None)), sampling="reward"
    ),
    "r_gold": Method("likelihood", form="goodness"),
    "qrpo": Method(
        "reference samples",
        "references",
        strength=("BETA", (0.3, 1.0)),
        # Slot errors tie, so ranks are not uniform and Z comes from the samples.
        macros={"rnnlg": {"LOG_PARTITION": "samples"}},
        tasks=("rnnlg",),
    ),
    "astar_po": Method(
        "reference samples",
        "references",
        strength=("BETA2", (0.3, 1.0)),
        macros={"rnnlg": {"BETA1": 1.0}},
        tasks=("rnnlg",),
    ),
    "selm": Method("pairs", "thirds", strength=("ALPHA", (0.01, 0.1)), tasks=("rnnlg",)),
    "ift": Method("likelihood", form="best", strength=("MIX", (0.0, 0.2)), tasks=("rnnlg",)),
}
