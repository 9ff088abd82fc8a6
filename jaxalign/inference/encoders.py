"""Builds the text encoder of a run, with the run's vocabulary and lengths and its treatment of long prompts."""

from __future__ import annotations

from collections.abc import Mapping

from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.errors import UserError
from jaxalign.runs.folder import Run, TrainedNetwork


def encoder_of(
    run: Run | TrainedNetwork,
    *,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "",
    images: bool = False,
) -> TextEncoder:
    """Returns the encoder of a run's texts.

    Args:
      run: the run.
      max_input_length, max_target_length: the lengths in tokens, EOS included; 0 takes the run's length.
      long_prompts: 'truncate', 'truncate_left' or 'reject'; '' takes the run's setting.
      images: whether the caller gives the images of prompts to a network that reads images.

    Raises:
      UserError: a length is neither recorded nor given, `long_prompts` is unknown, or the network reads images that the caller lacks.
    """
    if not images:
        _require_text(run.run if isinstance(run, TrainedNetwork) else run)
    limits = Limits(
        max_input_length=run.length("inputs", max_input_length),
        max_target_length=run.length("targets", max_target_length),
        long_prompts=long_prompts or run.long_prompts,
    )
    return TextEncoder(run.vocabulary, limits)


def reads_images(run: Run, role: str) -> bool:
    """Returns whether a run describes a network that reads images."""
    config = run.description.networks.get(role, {}).get("config")
    return isinstance(config, Mapping) and bool(config.get("image_size"))


def _require_text(run: Run) -> None:
    for role in run.description.networks:
        if reads_images(run, role):
            raise UserError(
                f"the {role} network of {run.folder} reads images, and this command reads only the text of prompts; train, cache, score, "
                "generate and evaluate read images"
            )
