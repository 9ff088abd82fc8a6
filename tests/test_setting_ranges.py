"""Every number that a gin file or flag can set has a range, and a value outside it is refused when the object is built."""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil

import pytest

import jaxalign
from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.data.images import ImageFormat
from jaxalign.data.task_data import TaskData
from jaxalign.data.tokenization import Limits
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.inference.generate import GenerationSettings
from jaxalign.inference.sampling import DecodingSettings
from jaxalign.losses.self_annotation import RunningQuantile
from jaxalign.losses.unpaired import TwoSidedRunningMean
from jaxalign.networks.config import T5Config
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.lora import Lora
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.networks.t5gemma2_config import Gemma3Stack, T5Gemma2Config
from jaxalign.networks.t5gemma_config import GemmaStack, T5GemmaConfig
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.networks.two_tower import TwoTower
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.distillation import Distillation
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.goal_conditioned import GoalConditionedRewardModel
from jaxalign.objectives.ift import IFT
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.oreo import OREO
from jaxalign.objectives.reward_modelling import FeatureRewardModel, RewardModel
from jaxalign.objectives.sft import SFT
from jaxalign.objectives.spa import SPA
from jaxalign.parallel.devices import Devices
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.training import optimizers
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig

CONFIG = T5Config(128, 8, 2, 4, 16, 1, 1)
STACK = GemmaStack(8, 2, 1, 4, 16, 2)
STACK3 = Gemma3Stack(8, 2, 1, 4, 16, 2)
POLICY = Policy(CONFIG)

# What builds each kind of settings with valid values.
BUILDERS = {
    T5Config: functools.partial(
        T5Config,
        vocab_size=128,
        emb_dim=8,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    ),
    GemmaStack: functools.partial(
        GemmaStack, emb_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16, num_layers=2
    ),
    T5GemmaConfig: functools.partial(T5GemmaConfig, vocab_size=128, encoder=STACK, decoder=STACK),
    Gemma3Stack: functools.partial(
        Gemma3Stack, emb_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16, num_layers=2
    ),
    T5Gemma2Config: functools.partial(
        T5Gemma2Config, vocab_size=128, encoder=STACK3, decoder=STACK3
    ),
    Policy: functools.partial(Policy, CONFIG),
    Lora: Lora,
    ValueNetwork: functools.partial(ValueNetwork, CONFIG),
    RewardNetwork: functools.partial(RewardNetwork, CONFIG),
    TwoTower: functools.partial(TwoTower, POLICY, item_size=2),
    ImageFormat: functools.partial(ImageFormat, 8, 4),
    FeatureReward: functools.partial(FeatureReward, num_features=2),
    RunningQuantile: RunningQuantile,
    TwoSidedRunningMean: TwoSidedRunningMean,
    SFT: functools.partial(SFT, policy=POLICY),
    IFT: functools.partial(IFT, policy=POLICY),
    KTO: functools.partial(KTO, policy=POLICY),
    DROP: functools.partial(DROP, policy=POLICY),
    DROV: functools.partial(DROV, policy=POLICY, value=ValueNetwork(CONFIG)),
    OREO: functools.partial(OREO, policy=POLICY, value=TokenValueNetwork(CONFIG)),
    SPA: functools.partial(SPA, policy=POLICY, total_steps=10),
    Distillation: functools.partial(Distillation, policy=POLICY),
    RewardModel: functools.partial(RewardModel, policy=POLICY, reward=RewardNetwork(CONFIG)),
    FeatureRewardModel: functools.partial(
        FeatureRewardModel, policy=POLICY, reward=FeatureReward(2)
    ),
    GoalConditionedRewardModel: functools.partial(
        GoalConditionedRewardModel, policy=POLICY, reward=DecoderRewardNetwork(CONFIG)
    ),
    MeshShape: MeshShape,
    Devices: Devices,
    LoopConfig: functools.partial(LoopConfig, train_steps=1),
    CheckpointPolicy: CheckpointPolicy,
    TaskData: functools.partial(
        TaskData, task="t", cache_dir="c", feature_lengths={"inputs": 8, "targets": 8}
    ),
    Limits: Limits,
    DecodingSettings: functools.partial(DecodingSettings, max_target_length=8),
    GenerationSettings: functools.partial(
        GenerationSettings, DecodingSettings(max_target_length=8)
    ),
    PassSettings: functools.partial(
        PassSettings, feature_lengths={"inputs": 8, "targets": 8}, batch_size=1, mesh=None, info={}
    ),
    EvaluationSettings: functools.partial(EvaluationSettings, prompts="p"),
    "adafactor": optimizers.adafactor,
    "adamw": optimizers.adamw,
    "sgd": optimizers.sgd,
}
# Any finite number makes sense.
SIGNED = {(KTO, "desirable_threshold"), (TwoSidedRunningMean, "desirable_threshold")}
# Dataclasses that hold results, not settings, in the folders that are searched.
FOLDERS = ("networks", "objectives", "losses", "training", "inference")
NOT_SETTINGS = {
    "BuiltStep",
    "InitialCheckpoint",
    "Requirements",
    "Placement",
    "CacheMetadata",
    "Optimizer",
    "Dense",
    "Affine",
    "GemmaEmbedding",
    "SharedEmbedding",
    # Bases of the stacks and configurations above.
    "Stack",
    "GemmaConfig",
    "TrainingBatches",
    "Experiment",
    "Adapter",
    "Base",
    "LoraPolicy",
    "Prompts",
    "BlockwiseBias",
    # Pytrees, which JAX makes too: decoding calls their `check`.
    "NoRepeatedNGram",
    "PrefixValue",
    "Trie",
}


def numbers_of(builder):
    """The parameters that take an int or a float, and their annotation."""
    for name, parameter in inspect.signature(builder).parameters.items():
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        if {part.strip() for part in text.split("|")} <= {"int", "float", "None"}:
            yield name, text


CASES = [
    (key, name, text) for key, builder in BUILDERS.items() for name, text in numbers_of(builder)
]


@pytest.mark.parametrize(("key", "name", "text"), CASES)
def test_every_number_has_a_range(key, name, text):
    BUILDERS[key]()
    bad = [math.nan] if "float" in text else []
    if (key, name) not in SIGNED:
        bad.append(-7.5 if "float" in text else -7)
    for value in bad:
        with pytest.raises((ValueError, TypeError)) as caught:
            BUILDERS[key](**{name: value})
        assert name in str(caught.value) or name.upper() in str(caught.value)


def test_every_settings_class_is_among_them():
    found = set()
    for folder in FOLDERS:
        package = importlib.import_module(f"jaxalign.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for cls in vars(importlib.import_module(module.name)).values():
                if (
                    inspect.isclass(cls)
                    and dataclasses.is_dataclass(cls)
                    and cls.__module__.startswith(jaxalign.__name__)
                    and not cls.__name__.startswith("_")
                    and list(numbers_of(cls))
                ):
                    found.add(cls)
    missing = {cls.__name__ for cls in found} - {
        key if isinstance(key, str) else key.__name__ for key in BUILDERS
    }
    assert missing <= NOT_SETTINGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": "[0, inf)", "x": -1}, "A.x is -1; it must be at least 0"),
        ({"interval": "(0, inf)", "x": 0.0}, "A.x is 0.0; it must be positive"),
        ({"interval": "[0, 1)", "x": 1}, "A.x is 1; it must lie in [0, 1)"),
        ({"interval": "[0, inf)", "x": math.inf}, "A.x is inf; it must be at least 0"),
        ({"interval": "(-inf, inf)", "x": math.nan}, "A.x is nan; it must be a finite number"),
        ({"interval": "[0, 1]", "x": "0.5"}, "A.x is 0.5; it must lie in"),
    ],
)
def test_a_range_is_said_in_words(arguments, message):
    with pytest.raises(UserError) as caught:
        require_range("A", **arguments)
    assert message in str(caught.value)
