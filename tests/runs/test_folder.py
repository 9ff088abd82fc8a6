"""What a run folder says of its reward network is enough to build it again."""

import json

import pytest

from jaxalign.errors import UserError
from jaxalign.networks.config import T5Config
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.objectives.reward_modelling import RewardModel
from jaxalign.runs import checkpoints, describing
from jaxalign.runs.folder import Run

SIZES = dict.fromkeys(("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"), 8)
CONFIG = T5Config(**SIZES, num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",))


@pytest.fixture
def write_run(tmp_path):
    """A run folder with a finished checkpoint, as far as `Run` looks, and a description of its networks."""

    def write(networks):
        (tmp_path / "checkpoints" / "3").mkdir(parents=True)
        (tmp_path / "networks.json").write_text(json.dumps({"networks": networks}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "network",
    [
        RewardNetwork(CONFIG),
        RewardNetwork(CONFIG, max_length=40),
        DecoderRewardNetwork(CONFIG),
        FeatureReward(7, hidden=(3, 2), activation="relu", scale=5.0, form="released"),
    ],
)
def test_a_description_gives_the_network_back(network, write_run, monkeypatch):
    objective = RewardModel(policy=Policy(CONFIG), reward=network)
    description = describing.describe_networks(objective)
    run = write_run(description["networks"])
    monkeypatch.setattr(checkpoints, "restore_params", lambda *_, **options: options)
    found = Run(run).reward()
    assert found.network == network and found.step == 3
    options = found.params
    assert options["abstract"]().keys() == network.abstract_params().keys()


def test_a_run_without_a_reward_network_is_refused(write_run):
    run = write_run({"policy": Policy(CONFIG).description()})
    with pytest.raises(UserError, match="has no reward network; its roles: policy"):
        Run(run).reward()
    with pytest.raises(UserError, match="policy is no reward network"):
        Run(run).reward(role="policy")


def test_a_description_of_another_version_is_refused_by_name(write_run):
    run = write_run({"reward": {"kind": "feature_reward", "num_features": 2, "depth": 3}})
    with pytest.raises(UserError, match=r"networks\.json, network reward: .*depth"):
        Run(run).reward()
