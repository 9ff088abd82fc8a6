"""Networks by kind: from the description in a run folder to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.networks.architecture import config_from_dict
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.lora import Lora, LoraPolicy
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import Network
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.networks.value import SharedTrunkValue, ValueNetwork
from jaxalign.networks.value_variants import ScalarValue, SentinelValue, ZeroValue

NETWORKS: dict[str, type[Any]] = {
    network.kind: network
    for network in (
        Policy,
        LoraPolicy,
        ValueNetwork,
        SharedTrunkValue,
        ScalarValue,
        ZeroValue,
        SentinelValue,
        TokenValueNetwork,
        RewardNetwork,
        DecoderRewardNetwork,
        FeatureReward,
    )
}


def build(description: Mapping[str, Any]) -> Network:
    """Builds the network of a description, inverse of `Network.description`.

    Raises:
      ValueError: the kind is unknown, or a field is unknown, missing or out of range.
    """
    fields = dict(description)
    kind = fields.pop("kind", None)
    if kind not in NETWORKS:
        raise ValueError(f"its kind is {kind!r}; known: {', '.join(NETWORKS)}")
    try:
        if "config" in fields:
            fields["config"] = config_from_dict(fields["config"])
        if "lora" in fields:
            fields["lora"] = Lora.from_dict(fields["lora"])
        if "policy" in fields:
            fields["policy"] = build(fields["policy"])
        network: Network = NETWORKS[kind](**fields)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return network
