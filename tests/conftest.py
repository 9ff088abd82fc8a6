"""Settings and fixtures for every test.

The environment has to be set before anything imports jax, so it is set at import of this file.
"""

import os
from pathlib import Path

# Eight fake devices, so that every mesh can be tested on a laptop.
_DEVICES_FLAG = "--xla_force_host_platform_device_count"
if _DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES_FLAG}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

pytest_plugins = ("tests.fixtures.small_networks", "tests.fixtures.letter_networks")

# Shapes and dtypes in the public signatures are checked at run time in the tests.
jaxtyping.install_import_hook(
    ["jaxalign.losses", "jaxalign.networks", "jaxalign.objectives"], "beartype.beartype"
)

# The same examples on every machine: a failure in CI is a failure here.
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


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
