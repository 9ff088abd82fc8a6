"""The bundled tasks: records that `synthetic` makes, without files and without TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping

from jaxalign.data import synthetic
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.sources import RecordSource


@dataclasses.dataclass
class SyntheticSource(RecordSource):
    """The bundled task (see `synthetic`): `num_prompts` acts for training, and `num_validation` others as the validation split.

    There are so many that a small T5 does not memorise responses in SFT. It did with a third of them, read five times: their log-ratios
    then fall in DRO, those of held-out responses do not, and V is too high for held-out prompts.
    """

    kind: str = "triplet"
    num_prompts: int = 12000
    num_validation: int = 300
    responses_per_prompt: int = 2
    seed: int = 0
    behaviour: Mapping[str, synthetic.Behaviour] = dataclasses.field(
        default_factory=lambda: dict(synthetic.WRITERS)
    )
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
        return hashlib.sha256(f"synthetic 2 {options}".encode()).hexdigest()


BUNDLED: dict[str, Callable[[], RecordSource]] = {
    "synthetic_triplets": lambda: SyntheticSource("triplet"),
    "synthetic_seq2seq": lambda: SyntheticSource("seq2seq"),
    "synthetic_pairs": lambda: SyntheticSource("pair", responses_per_prompt=4),
    "synthetic_ranked": lambda: SyntheticSource("ranked", responses_per_prompt=4),
}


def write_triplets(
    output_dir: str,
    *,
    num_prompts: int = 12000,
    num_validation: int = 300,
    responses_per_prompt: int = 2,
    seed: int = 0,
) -> tuple[str, str]:
    """Writes triplets of the bundled task as JSON Lines, as a user's own file would have them.

    Args:
      output_dir: the folder; it is created.
      num_prompts: prompts of the training file.
      num_validation: further prompts, of the validation file.
      responses_per_prompt: logged responses drawn for a prompt; equal ones are written once.
      seed: seed of prompts and responses.

    Returns:
      The paths of ``synthetic.triplets.train.jsonl`` and ``synthetic.triplets.validation.jsonl``.
    """
    source = SyntheticSource(
        "triplet", num_prompts, num_validation, responses_per_prompt=responses_per_prompt, seed=seed
    )
    train, validation = (
        os.path.join(output_dir, f"synthetic.triplets.{split}.jsonl") for split in source.splits
    )
    write_jsonl(source.records("train"), train, "triplet")
    write_jsonl(source.records("validation"), validation, "triplet")
    return train, validation
