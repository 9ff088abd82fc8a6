"""From a run to the encoder of its texts: with the run's vocabulary and lengths, cutting prompts as the run did."""

from __future__ import annotations

from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.runs.folder import Run, TrainedNetwork


def encoder_of(
    run: Run | TrainedNetwork,
    *,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "",
) -> TextEncoder:
    """The encoder of a run's texts.

    Args:
      run: the run.
      max_input_length, max_target_length: tokens, EOS included; 0 takes the run's own.
      long_prompts: 'truncate', 'truncate_left' or 'reject'; '' takes the run's own.

    Raises:
      UserError: a length is neither recorded nor given, or `long_prompts` is unknown.
    """
    limits = Limits(
        max_input_length=run.length("inputs", max_input_length),
        max_target_length=run.length("targets", max_target_length),
        long_prompts=long_prompts or run.long_prompts,
    )
    return TextEncoder(run.vocabulary, limits)
