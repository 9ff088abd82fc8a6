"""Settings and fixtures for every test.

The environment has to be set before anything imports jax, so it is set at import of this file.
"""

import os
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Most of the time of the tests is compilation of small programs that run once, so XLA shall not optimise them: a training step of a
# tiny T5 compiles in 0.7 instead of 5 s. By version of jaxlib, because a version that does not know a flag ends the process.
_UNOPTIMISED = ("--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1")
_QUICK_COMPILATION = {
    "0.10.2": (*_UNOPTIMISED, "--xla_cpu_use_fusion_emitters=false"),
    "0.12.0": _UNOPTIMISED,
}
# Eight fake devices, so that every mesh can be tested on a laptop.
_DEVICES = "--xla_force_host_platform_device_count=8"


def _xla_flags() -> str:
    given = os.environ.get("XLA_FLAGS", "")
    wanted = [_DEVICES, *_QUICK_COMPILATION.get(version("jaxlib"), ())]
    return " ".join([*(flag for flag in wanted if flag.partition("=")[0] not in given), given])


os.environ["XLA_FLAGS"] = _xla_flags().strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jaxtyping
import pytest

pytest_plugins = (
    "tests.fixtures.letter_networks",
    "tests.fixtures.run_folders",
    "tests.fixtures.small_networks",
)

# Shapes and dtypes in the public signatures are checked at run time in the tests.
jaxtyping.install_import_hook(
    ["jaxalign.losses", "jaxalign.networks", "jaxalign.objectives"], "beartype.beartype"
)

# The same examples on every machine: a failure in CI is a failure here.
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """Commands of tests keep converted models and compiled programs apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXALIGN_CACHE", str(tmp_path_factory.mktemp("user_cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real data, tokenizers and goldens, which a user's machine does not have."""
    path = Path(os.environ.get("JAXALIGN_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(
            f"needs the shared data folder, and {path} is not one; set JAXALIGN_SHARED to its path"
        )
    return path
