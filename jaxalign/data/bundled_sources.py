"""The bundled tasks: records that `synthetic` makes, without files and without TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator

from jaxalign.data import synthetic
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.sources import RecordSource


@dataclasses.dataclass
class SyntheticSource(RecordSource):
    """The bundled task (see `synthetic`): `num_prompts` acts, of which `num_validation` are the validation split."""

    kind: str = "triplet"
    num_prompts: int = 4000
    num_validation: int = 300
    responses_per_prompt: int = 2
    seed: int = 0
    behaviour: synthetic.Behaviour = dataclasses.field(default_factory=synthetic.Behaviour)
    feedback: str = "slots"
    difficulty_weight: float = 0.0
    score_names: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def records(self, split: str, log: RejectionLog | None = None) -> Iterator[Record]:
        if split not in self.splits:
            raise DataError(
                f"The bundled task has no split {split!r}; it has train and validation."
            )
        prompts = synthetic.make_prompts(self.num_prompts + self.num_validation, self.seed)
        cut = self.num_prompts
        for record in synthetic.make_records(
            self.kind,
            prompts[:cut] if split == "train" else prompts[cut:],
            responses_per_prompt=self.responses_per_prompt,
            seed=self.seed,
            behaviour=self.behaviour,
            feedback=self.feedback,
            difficulty_weight=self.difficulty_weight,
        ):
            if log is not None:
                log.seen += 1
            yield record

    def fingerprint(self) -> str | None:
        options = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(f"synthetic 1 {options}".encode()).hexdigest()


BUNDLED: dict[str, Callable[[], RecordSource]] = {
    "synthetic_triplets": lambda: SyntheticSource("triplet"),
    "synthetic_seq2seq": lambda: SyntheticSource("seq2seq"),
    "synthetic_pairs": lambda: SyntheticSource("pair", responses_per_prompt=4),
    "synthetic_ranked": lambda: SyntheticSource("ranked", responses_per_prompt=4),
}
