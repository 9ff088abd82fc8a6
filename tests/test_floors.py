"""The floor rule of the package: imports go down a floor or stay inside a folder, and no files import each other in a circle.

Lazy imports (inside functions) and imports for type checkers count too.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "jaxalign"

# The floor of every folder. A file may import its own folder and folders with a smaller number.
FLOORS = {
    "errors": 0,
    # The files at the top, which every folder may use.
    "files": 0.1,
    "hub": 0.1,
    "plugins": 0.1,
    "untrusted": 0.1,
    "version": 0,
    "locks": 0.2,
    "networks": 1,
    "losses": 1,
    "parallel": 1,
    "objectives": 2,
    "data": 2,
    "runs": 3,
    "interop": 4,  # reads and writes run folders beside foreign checkpoints
    "inference": 5,
    "inspection": 5,  # reads a checkpoint to start from
    "annotation": 6,  # judges let networks answer through inference
    "selection": 6,
    "retrieval": 6.5,  # annotators give items their vectors
    "training": 7,
    "evaluation": 7,
    "recipes": 8,
    "planning": 8,
    "cli": 9,
    "api": 10,  # the commands from Python
    "train": 10,  # ``python -m jaxalign.train``, T5X's name for the command
    "__main__": 10,
}
# What the training core must not import, so that it runs where there are only jax, flax, optax, orbax and grain.
NOT_IN_THE_CORE = {"tensorflow", "seqio", "gin", "tensorflow_datasets", "sentencepiece"}
CORE = ("networks", "losses", "objectives", "parallel", "training/step.py", "training/state.py")


def module_files():
    """Module name -> file, for every file of the package."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ["jaxalign", *path.relative_to(PACKAGE).with_suffix("").parts]
        files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imported_modules(path):
    """The full names of everything that a file imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def import_graph():
    """Module -> the modules of the package that it imports."""
    files = module_files()

    def resolve(name):
        return name if name in files else name.rpartition(".")[0]

    return {
        module: {resolve(name) for name in imported_modules(path)} & files.keys()
        for module, path in files.items()
    }


def folder_of(module):
    """The folder, or the file at the top, that a module belongs to; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def test_every_folder_has_a_floor():
    assert {folder_of(module) for module in module_files()} - {None} <= FLOORS.keys()


def test_imports_go_down_or_stay_inside_a_folder():
    wrong = [
        f"{module} imports {other}"
        for module, others in import_graph().items()
        for other in others
        if folder_of(module) not in (None, folder_of(other))
        and folder_of(other) is not None
        and FLOORS[folder_of(other)] >= FLOORS[folder_of(module)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_files_import_each_other_in_a_circle():
    graph = import_graph()
    open_modules: list[str] = []
    done = set()

    def visit(module):
        if module in done:
            return
        assert module not in open_modules, " -> ".join([*open_modules, module])
        open_modules.append(module)
        for other in sorted(graph[module]):
            visit(other)
        done.add(open_modules.pop())

    for module in sorted(graph):
        visit(module)


def test_the_training_core_imports_no_data_or_configuration_library():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for part in CORE
        for path in ([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"))
        for name in imported_modules(path)
        if name.split(".")[0] in NOT_IN_THE_CORE
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_in_the_package_imports_the_studies_or_the_tests():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in module_files().values()
        for name in imported_modules(path)
        if name.split(".")[0] in ("studies", "tests", "benchmarks")
    ]
    assert not wrong, "\n".join(wrong)
