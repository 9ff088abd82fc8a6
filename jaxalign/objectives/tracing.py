"""Traces a loss function once, on abstract arrays, so that a wrong hyperparameter is refused when the objective is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import UserError
from jaxalign.losses.hyperparameters import HyperparameterError

# For four prompts with two responses each.
_PER_RESPONSE: tuple[int, ...] = (4, 2)
_SHAPES: dict[str, tuple[int, ...]] = {
    "scores": (4, 2, 2),
    "prompt_ids": (4,),
    "reference_rewards": (4, 3),
    "prompt_embeddings": (4, 8),
}
_TYPES: dict[str, Any] = {"mask": bool, "prompt_ids": jnp.int32}


# The messages of Python and of jaxtyping's checks.
_MISSING = r"missing (?:\d+ required keyword-only arguments?|a required argument): (.*)"


def abstract_array(name: str, quantity: str) -> Any:
    """A shape that a loss function's parameter may have; without the axis of the responses if the name has a prefix for one of them."""
    shape = _SHAPES.get(quantity, _PER_RESPONSE)
    if name != quantity:
        shape = shape[:1] + shape[2:]
    return jax.ShapeDtypeStruct(shape, _TYPES.get(quantity, jnp.float32))


def check_hyperparameters(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> None:
    """Traces the function; nothing is computed.

    Args:
      name: the method's, for errors.
      function: a loss function with its hyperparameters bound.
      arguments: shapes of its arrays.

    Raises:
      UserError: a hyperparameter has no value, or one that the function refuses.
    """
    try:
        jax.eval_shape(lambda arrays: function(**arrays), dict(arguments))
    except HyperparameterError:
        raise
    except TypeError as error:
        missing = re.search(_MISSING, str(error))
        if missing:
            raise UserError(
                f"objective {name}: the loss function has no value for {missing.group(1).splitlines()[0]}"
            ) from error
    except Exception:  # The shapes are guesses, so other errors are left to the real ones.
        pass
