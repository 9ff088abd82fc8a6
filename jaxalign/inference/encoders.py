"""Builds the text encoder of a run, with the run's vocabulary and lengths and its treatment of long prompts."""

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
    """Returns the encoder of a run's texts.

    Args:
      run: the run.
      max_input_length, max_target_length: the lengths in tokens, EOS included; 0 takes the run's length.
      long_prompts: 'truncate', 'truncate_left' or 'reject'; '' takes the run's setting.

    Raises:
      UserError: a length is neither recorded nor given, or `long_prompts` is unknown.
    """
    limits = Limits(
        max_input_length=run.length("inputs", max_input_length),
        max_target_length=run.length("targets", max_target_length),
        long_prompts=long_prompts or run.long_prompts,
    )
    return TextEncoder(run.vocabulary, limits)
