"""Runs an objective of jaxalign inside T5X's trainer, as an `EncoderDecoderModel` that uses the objective's loss.

This module imports T5X, which is not a dependency of jaxalign. docs/t5x.md has the gin file for ``python -m t5x.train``.

The policy's parameters are at the root of T5X's tree, as in every checkpoint of T5X. The parameters of a value network are under
``value``. T5X's module initialises, decodes and names axes. The loss uses the objective's own policy network, which has the same tree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import seqio
import tensorflow as tf
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning
from t5x import models

from jaxalign.errors import UserError
from jaxalign.interop.parameters import require_t5x
from jaxalign.objectives.base import Objective
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.responses import Responses
from jaxalign.objectives.whole_batch import WholeBatch

VALUE = "value"
# An axis that T5X neither shards nor factorises. T5X's rules do not accept None.
_PLAIN_AXIS = "relpos_buckets"
# The fields of T5X's network.T5Config that have the same name in jaxalign's T5Config.
_SAME_FIELDS = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "logits_via_embedding",
)


class ObjectiveModel(models.EncoderDecoderModel):
    """A T5X encoder-decoder model that an objective trains on single responses with stored rewards and reference log-probabilities."""

    def __init__(
        self,
        module: Any,
        input_vocabulary: Any,
        output_vocabulary: Any,
        optimizer_def: Any,
        objective: Objective,
        rows: int,
        **options: Any,
    ) -> None:
        """Makes the model.

        Args:
          module, input_vocabulary, output_vocabulary, optimizer_def: the arguments of T5X's model.
          objective: DROP, DROV, or another objective on single responses that `check_objective` accepts.
          rows: the number of rows of the whole batch (T5X's BATCH_SIZE). The loss of every microbatch is divided by it, because T5X adds
            up the gradients of microbatches.
          **options: further arguments of T5X's model, such as ``decode_fn``.

        Raises:
          UserError: the objective cannot run inside T5X's trainer, or its network differs from the module.
        """
        check_objective(objective)
        _check_same_network(objective.policy, module)
        if rows < 1:
            raise UserError(f"rows is the number of rows of the whole batch, not {rows}")
        self.objective, self.rows = objective, rows
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=optimizer_def,
            feature_converter_cls=functools.partial(
                seqio.EncDecFeatureConverter, passthrough_features=passthrough_features(objective)
            ),
            **options,
        )

    def get_initial_variables(
        self, rng: Any, input_shapes: Mapping[str, Any], input_types: Any = None
    ) -> Any:
        """Returns T5X's variables, with those of a value network under ``params['value']`` and ``params_axes['value']``."""
        made = super().get_initial_variables(rng, input_shapes, input_types)
        value = self.objective.trained().get(VALUE)
        if value is None:
            return made
        variables = dict(flax.core.unfreeze(made))
        params = value.init(jax.random.fold_in(rng, 1))
        variables["params"] = {**variables["params"], VALUE: params}
        if "params_axes" in variables:
            axes = _axes_tree(params, value.logical_axes())
            variables["params_axes"] = {**variables["params_axes"], VALUE: axes}
        return flax.core.freeze(variables)

    def loss_fn(
        self, params: Any, batch: Mapping[str, Any], dropout_rng: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the objective's loss on a (micro)batch divided by the rows of the whole batch, and its metrics as clu averages."""
        roles = by_role(params)
        ours = to_batch(batch, passthrough_features(self.objective))
        prepared = self.objective.prepare(roles, ours)
        rows = ours["encoder_input_tokens"].shape[0]
        if prepared is not ours and dropout_rng is not None and rows != self.rows:
            raise UserError(
                f"objective {self.objective.name} reads statistics of the whole batch of {self.rows} rows, and this microbatch has {rows}: "
                "set trainer.Trainer.num_microbatches = None"
            )
        output = self.objective.loss(roles, prepared, dropout_rng)
        metrics = {
            name: clu_metrics.Average(total=metric.total, count=metric.weight)
            for name, metric in output.metrics.items()
        }
        return output.loss_sum / self.rows, metrics


def check_objective(objective: Objective) -> None:
    """Refuses objectives that T5X's trainer cannot run.

    Raises:
      UserError: the objective is refused; the message names what it needs.
    """
    reasons = {
        "it is T5X's own loss; use models.EncoderDecoderModel": objective.name == "sft",
        "it needs other networks in memory (KTO; a live reference)": bool(
            objective.frozen_roles() or objective.frozen_sources()
        ),
        "it compares the responses to one prompt, or prompts with each other": (
            (objective.responses_per_prompt or 1) > 1
            or objective.requirements().min_responses > 1
            or objective.requirements().distinct_prompts
            or isinstance(objective, WholeBatch)
        ),
        "it trains adapters only, and T5X would train the base too": any(
            network.base is not network for network in objective.trained().values()
        ),
        "it carries numbers from step to step": bool(objective.initial_statistics()),
        "it scales the optimizer's update; set RESCALE = 'none'": bool(objective.update_scales()),
        "only dro_p, dro_v and losses on single responses are known to work": not isinstance(
            objective, (DROP, DROV, Responses)
        ),
        "it trains networks besides policy and value": set(objective.trained()) - {"policy", VALUE}
        != set(),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UserError(
            f"objective {objective.name} does not run inside of T5X's trainer: {found[0]} (docs/t5x.md)"
        )


def passthrough_features(objective: Objective) -> dict[str, Any]:
    """Returns the features of a seqio task besides inputs and targets, as one-number arrays, because seqio does not trim scalars."""
    spec = seqio.FeatureConverter.FeatureSpec(dtype=tf.float32, rank=1)
    return dict.fromkeys(objective.required_fields(), spec)


def by_role(params: Any) -> dict[str, Any]:
    """Returns T5X's parameters by role, the form that objectives read."""
    tree = dict(flax.core.unfreeze(params))
    value = tree.pop(VALUE, None)
    return {"policy": tree} if value is None else {"policy": tree, VALUE: value}


def to_batch(batch: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a T5X batch with one prompt and one response per row to the layout of jaxalign.

    Raises:
      UserError: rows hold several examples, or a field is missing.
    """
    if "encoder_segment_ids" in batch or "decoder_segment_ids" in batch:
        raise UserError(
            "packed rows do not say whose reward is whose: set DatasetConfig.pack = False"
        )
    missing = sorted(name for name in fields if name not in batch)
    if missing:
        raise UserError(
            f"the batch lacks {', '.join(missing)}: the seqio task has to give it, and TASK_FEATURE_LENGTHS to list it"
        )
    targets = jnp.asarray(batch["decoder_target_tokens"])
    filled = (targets > 0).astype(jnp.int32)
    exists = filled.any(axis=1).astype(jnp.float32)[:, None, None]
    ours = {
        "encoder_input_tokens": jnp.asarray(batch["encoder_input_tokens"]),
        "encoder_segment_ids": (jnp.asarray(batch["encoder_input_tokens"]) > 0).astype(jnp.int32),
        "decoder_input_tokens": jnp.asarray(batch["decoder_input_tokens"]),
        "decoder_target_tokens": targets,
        "decoder_segment_ids": filled,
        "decoder_loss_weights": filled.astype(jnp.float32),
        "response_mask": exists,
    }
    return ours | {name: jnp.asarray(batch[name], jnp.float32).reshape(-1, 1, 1) for name in fields}


def _check_same_network(policy: Any, module: Any) -> None:
    ours, theirs = policy.config, module.config
    require_t5x("the objective's policy", ours)
    for name in _SAME_FIELDS:
        given = getattr(theirs, name, getattr(ours, name))
        if given != getattr(ours, name):
            raise UserError(
                f"the objective's policy has {name} {getattr(ours, name)}, and T5X's module {given}: describe the same network to both"
            )
    activations = tuple(getattr(theirs, "mlp_activations", ours.mlp_activations))
    if activations != tuple(ours.mlp_activations):
        raise UserError(
            f"the objective's policy has mlp_activations {tuple(ours.mlp_activations)}, and T5X's module {activations}"
        )
    if ours.scan_layers:
        raise UserError("T5X's T5 has its layers one by one: set SCAN_LAYERS = False")


def _axes_tree(params: Any, axes: Any) -> Any:
    """Returns axis names for every parameter, in the format of flax's `param_with_axes`."""
    if not isinstance(params, Mapping):
        raise AssertionError("a parameter without a name")
    tree: dict[str, Any] = {}
    for name, branch in params.items():
        if isinstance(branch, Mapping):
            tree[name] = _axes_tree(branch, axes[name])
            continue
        names = tuple(axis or _PLAIN_AXIS for axis in axes[name])
        tree[f"{name}_axes"] = flax_partitioning.AxisMetadata(names=names)
    return tree
