"""Tasks of the frontiers: dialogue acts, their writers, and feedback from exact slot errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxalign.data import synthetic
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.networks.policy import Policy
from studies import rnnlg, rnnlg_data
from studies.command_line import MINI_T5


@dataclasses.dataclass(frozen=True)
class Source:
    """Where acts and sentences come from.

    Attributes:
      name: `rnnlg` (real sentences, delexicalised) or `bundled` (writers of different care by domain).
      policy: the network.
      lengths: the longest prompt and response, in tokens.
      rows: token lengths of packed rows: of one response an act, and of pairs.
    """

    name: str
    policy: Policy
    lengths: dict[str, int]
    rows: dict[str, dict[str, int]]

    def prepare(self, data: Path, job: Path) -> dict[str, int]:
        """Writes the sentences to imitate, by split, and a vocabulary; returns the number of acts of each split."""
        if self.name == "rnnlg":
            return rnnlg_data.prepare(data, job, rnnlg.VOCAB_SIZE)
        acts = synthetic.make_prompts(sum(BUNDLED_ACTS.values()), seed=0)
        texts: list[str] = []
        start = 0
        for split, count in BUNDLED_ACTS.items():
            records = list(synthetic.make_records("seq2seq", acts[start : start + count]))
            start += count
            write_jsonl(records, str(job / f"{split}.jsonl"), "seq2seq")
            if split == "train":
                texts += [text for each in records for text in (each.prompt, each.responses[0])]
        train_sentencepiece(texts, str(job / "spm.model"), vocab_size=BUNDLED_PIECES)
        return dict(BUNDLED_ACTS)

    def reward(self, act: str, sentence: str) -> float:
        """Returns minus the share of slots that are wrong, missing or invented."""
        if self.name == "rnnlg":
            return rnnlg_data.feedback(act, sentence)
        return 0.0 - synthetic.slot_errors(act, sentence).rate


BUNDLED_ACTS = {"train": 12000, "validation": 500, "test": 500}
BUNDLED_PIECES = 300
RNNLG = Source(
    "rnnlg",
    rnnlg.POLICY,
    rnnlg.LENGTHS,
    {"triplets": {"inputs": 160, "targets": 144}, "pairs": {"inputs": 128, "targets": 192}},
)
BUNDLED = Source(
    "bundled",
    Policy(dataclasses.replace(MINI_T5, vocab_size=320), logits_chunk_size=None),
    {"inputs": 40, "targets": 48},
    {"triplets": {"inputs": 120, "targets": 120}, "pairs": {"inputs": 96, "targets": 168}},
)


SOURCES = (RNNLG, BUNDLED)


@dataclasses.dataclass(frozen=True)
class Task:
    """A source, and how lenient its annotator is.

    Attributes:
      source: acts and policy.
      spread: weight of `synthetic.difficulty` in the feedback that methods read: it moves all responses to an act alike, and thus changes
        no preference and no measure.
      methods: methods that are compared.
    """

    source: Source
    spread: float
    methods: tuple[str, ...]

    def feedback(self, act: str, sentence: str) -> float:
        """Returns what a method reads of a response."""
        offset = self.spread * synthetic.difficulty(act) if self.spread else 0.0
        return self.source.reward(act, sentence) - offset

    def records(self, acts: Sequence[str], samples: Sequence[Sequence[str]]) -> list[Record]:
        """Returns triplets; empty responses are left out."""
        return [
            Record(act, (text,), (self.feedback(act, text),))
            for act, group in zip(acts, samples, strict=True)
            for text in group
            if text.strip()
        ]


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, and the grid of its strength.

    Attributes:
      strength: macro of the gin file, and its values from weak to strong or the reverse.
      form: `triplets` or `pairs`.
      macros: further macros.
    """

    strength: tuple[str, tuple[float, ...]]
    form: str = "triplets"
    macros: dict[str, object] = dataclasses.field(default_factory=dict)


_TEMPERATURES = ("TEMPERATURE", (0.1, 0.3, 1.0, 2.0, 5.0))
_BETAS = (0.03, 0.1, 0.3, 1.0, 3.0)
# The default multiplies DRO's learning rate by 1 / tau, so that its search would differ from that of the other methods.
_PLAIN: dict[str, object] = {"RESCALE": "none"}
METHODS = {
    "dro_v": Method(_TEMPERATURES, macros=_PLAIN),
    "zero_value": Method(_TEMPERATURES),
    "dro_v_scalar_value": Method(_TEMPERATURES, macros=_PLAIN),
    "dro_p": Method(_TEMPERATURES, macros=_PLAIN),
    "kto": Method(("BETA", (0.3, 1.0, 3.0, 5.0, 10.0))),
    "bco": Method(("BETA", _BETAS), macros={"DESIRABLE_THRESHOLD": -1e-6}),
    "dpo": Method(("BETA", _BETAS), "pairs"),
    "ipo": Method(("TAU", _BETAS), "pairs"),
    "filtered_sft": Method(("THRESHOLD", (-1.0, -0.5, 0.0, 0.25, 0.5))),
    "reward_weighted_regression": Method(_TEMPERATURES),
}
DRO_FAMILY = ("dro_v", "zero_value", "dro_v_scalar_value", "dro_p")
TASKS = {
    "rnnlg": Task(RNNLG, 0.0, tuple(METHODS)),
    "bundled": Task(BUNDLED, 0.0, (*DRO_FAMILY, "kto")),
    "bundled_spread": Task(BUNDLED, 2.0, (*DRO_FAMILY, "kto")),
}
