"""The commands and the signatures of their functions, read without importing the functions.

A command is one function with keyword parameters. Its flags and its help come from the source text of
that function, so that help and spelling errors are reported at once, before JAX or TensorFlow load.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


class UsageError(UserError):
    """An error for a command line or gin configuration that cannot be interpreted."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its function, its line in the list of commands, and the text that it prints at the end.

    Attributes:
      name: the name as typed.
      module: the module of the function.
      function: the name of the function.
      summary: the line for the list of commands.
      done: a format string over the function's ``result`` and, of a run, ``best`` and ``folder``; empty for functions that print their own
        text.
      next: a format string over the same values, and `folder`, the run folder: what is likely to be typed next.
      configured_as: another command whose gin bindings this command uses for the parameters that both have.
      dispensable: gin macros that this command does not require, and the values they get if they have none.
      registers_tasks: whether the command reads tasks, so that the functions in REGISTER_TASKS are called first.
      dry_run: a module whose function ``check`` gets the command's arguments under --dry_run, and raises the errors that the command
        would soon raise. It may return text that is printed after the configuration.
      distributed: whether several processes can run it together.
      keeps_compiled: whether its compiled programs stay in the user's cache.
      reads_networks: whether it computes with networks of runs, which --model_devices divides.
      model_file: a gin file that is read after the user's files if these describe a model, so that the command uses it.
      positional: the parameter that the first argument sets, if it is not a flag.
      passes_on: a parameter that gets the gin files and settings of the command line as flags; the command reads no configuration itself.
      rebuilt: a parameter that gin binds to a function; the command gets a function from values of macros to this function with its
        arguments, so that it can have them built anew with other values (`gin_rebuilding`).
    """

    name: str
    module: str
    function: str
    summary: str
    done: str = ""
    next: str = ""
    dry_run: str = ""
    configured_as: str | None = None
    dispensable: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    registers_tasks: bool = True
    distributed: bool = False
    keeps_compiled: bool = True
    reads_networks: bool = False
    model_file: str = ""
    positional: str = ""
    rebuilt: str = ""
    passes_on: str = ""

    @property
    def selector(self) -> str:
        """The function's full name."""
        return f"{self.module}.{self.function}"

    @property
    def source(self) -> Path:
        """The file that defines the function."""
        return _PACKAGE.joinpath(*self.module.split(".")[1:]).with_suffix(".py")


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo",
            "jaxalign.cli.demo",
            "demo",
            "the whole method on bundled data: SFT, DRO-V, evaluation",
        ),
        Command(
            "train",
            "jaxalign.training.run",
            "train",
            "train the networks of an objective on a task",
            "finished at step {result[step]}{best}; metrics, checkpoints and summary.json are in {folder}",
            next="jaxalign generate --checkpoint={folder} ... answers prompts, jaxalign evaluate --checkpoints={folder} ... compares, "
            "jaxalign report --runs={folder} --output=report.html shows the curves",
            dry_run="jaxalign.training.dry_run",
            distributed=True,
        ),
        Command(
            "plan",
            "jaxalign.planning.plan",
            "plan",
            "memory, FLOPs, communication and step time of a run on a TPU slice, without a TPU",
            configured_as="train",
            dispensable={
                "MODEL_DIR": None,
                "INITIAL_CHECKPOINT_PATH": None,
                "TRAIN_STEPS": None,
                "TRAIN_FILE": None,
                "VOCABULARY": None,
                "CACHE_DIR": "",
                "EXTRA_IDS": 0,
                "MIXTURE_OR_TASK_NAME": "",
            },
            registers_tasks=False,
            # It reads the text of what was compiled for another machine.
            keeps_compiled=False,
        ),
        Command(
            "inspect",
            "jaxalign.inspection.file_inspection",
            "inspect",
            "say what a data file holds, and write a gin file that trains on it",
            registers_tasks=False,
            positional="file",
        ),
        Command(
            "cache",
            "jaxalign.data.cache",
            "cache",
            "validate and tokenise a task once, for training",
            "{result.report}",
            next="jaxalign train --gin_file=... with the same task reads it",
        ),
        Command(
            "vocabulary",
            "jaxalign.data.train_vocabulary",
            "train_vocabulary",
            "train a small SentencePiece model on a task",
            "{result.path} holds {result.size} pieces",
            next="jaxalign cache and train take it as --VOCABULARY={result.path}",
        ),
        Command(
            "convert",
            "jaxalign.interop.convert",
            "convert",
            "a checkpoint from T5X, Hugging Face or jaxalign into any of these formats",
            "{result[message]}",
            model_file="convert.gin",
        ),
        Command(
            "push",
            "jaxalign.evaluation.push",
            "push",
            "a policy with its model card into a folder or a repository of the Hugging Face hub",
            "{result[message]}",
            registers_tasks=False,
        ),
        Command(
            "score",
            "jaxalign.annotation.score",
            "score",
            "add a policy's log-probabilities or a reward model's rewards to a cached task",
            reads_networks=True,
        ),
        Command(
            "calibrate",
            "jaxalign.evaluation.reward_calibration",
            "calibrate",
            "map stored rewards to the units of a task's feedback",
        ),
        Command(
            "advantages",
            "jaxalign.annotation.advantages",
            "advantages",
            "add advantages, feedback minus a prompt's value, to a cached task",
            reads_networks=True,
        ),
        Command(
            "density_ratios",
            "jaxalign.annotation.density_ratios",
            "density_ratios",
            "add density ratios of prompts, for BCO, to a cached task",
            reads_networks=True,
        ),
        Command(
            "generate",
            "jaxalign.inference.generate",
            "generate",
            "write a policy's responses to prompts as JSON Lines",
            "{result[output]} holds {result[prompts]} prompts with responses, {result[generated]} of them new; in all of it, prompts cut: "
            "{result[cut_prompts]:.1%}, unknown pieces: {result[unknown_pieces]:.1%}, unfinished responses: {result[unfinished]:.1%}",
            next="jaxalign annotate --input={result[output]} --annotator=... judges them",
            reads_networks=True,
        ),
        Command(
            "annotate",
            "jaxalign.annotation.annotate",
            "annotate",
            "add a named annotation to responses: of a judge, a reward model, a policy, people, embeddings",
            "{result[report]}",
            next="jaxalign select --input={result[output]} --selector=... chooses what to train on",
            reads_networks=True,
            registers_tasks=False,
        ),
        Command(
            "select",
            "jaxalign.selection.select",
            "select",
            "make training records of annotated candidates, or choose what is to be labelled",
            registers_tasks=False,
        ),
        Command(
            "index",
            "jaxalign.retrieval.index",
            "index",
            "give items identifiers that a policy can learn to write, for retrieval",
            "{result[report]}",
            registers_tasks=False,
        ),
        Command(
            "retrieve",
            "jaxalign.evaluation.retrieve",
            "retrieve",
            "rank items for queries by the identifiers that a policy writes, beside two baselines",
            "{result[report]}",
            reads_networks=True,
            registers_tasks=False,
        ),
        Command(
            "vote",
            "jaxalign.evaluation.vote",
            "vote",
            "let the answers of several responses vote: by majority, weighted, or filtered early by a reward model",
            "{result[report]}",
            reads_networks=True,
            registers_tasks=False,
        ),
        Command(
            "rounds",
            "jaxalign.recipes.rounds",
            "rounds",
            "sample, annotate, select and train, round after round, from one gin file",
            "all rounds are finished: {result[output_dir]} holds rounds.md, rounds.json and rounds.png",
            dry_run="jaxalign.recipes.rounds_dry_run",
            reads_networks=True,
            registers_tasks=False,
            rebuilt="training",
        ),
        Command(
            "sweep",
            "jaxalign.recipes.sweep",
            "sweep",
            "train with many values of macros or parameters, and rank the runs",
            "{result[report]}",
            registers_tasks=False,
            passes_on="train_arguments",
        ),
        Command(
            "evaluate",
            "jaxalign.evaluation.evaluate",
            "evaluate",
            "judge policies side by side on the same prompts",
            reads_networks=True,
        ),
        Command(
            "report",
            "jaxalign.evaluation.report",
            "report",
            "tables or one HTML page from evaluations and run folders",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a command's function, as written in its source."""

    name: str
    annotation: str
    default: str | None
    description: str

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is None


@dataclasses.dataclass(frozen=True)
class Signature:
    """The signature of a command's function: its docstring without the list of arguments, and its parameters by name."""

    summary: str
    parameters: dict[str, Parameter]


def read_signature(command: Command) -> Signature:
    """Reads a command's parameters, defaults and docstring from its source file.

    Raises:
      LookupError: the file does not define the function at its top level.
    """
    tree = ast.parse(command.source.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == command.function:
            return _signature(node)
    raise LookupError(f"{command.source} does not define {command.function}")


def _signature(node: ast.FunctionDef) -> Signature:
    docstring = ast.get_docstring(node) or ""
    summary, descriptions = split_docstring(docstring)
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [
        *zip(positional, [*defaults, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    parameters = {
        argument.arg: Parameter(
            name=argument.arg,
            annotation=ast.unparse(argument.annotation) if argument.annotation else "str",
            default=None if default is None else ast.unparse(default),
            description=descriptions.get(argument.arg, ""),
        )
        for argument, default in pairs
        if not _is_function(argument)
    }
    return Signature(summary, parameters)


def _is_function(argument: ast.arg) -> bool:
    """Returns whether a parameter takes a function, which no flag can set."""
    return argument.annotation is not None and "Callable[" in ast.unparse(argument.annotation)


def split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring into the text before `Args:` and each argument's description.

    Returns:
      The text before the first section, and a dict from argument name to its description on one line. Names that are documented
      together, as in `a, b: text`, share the description.
    """
    summary, _, rest = docstring.partition("\nArgs:\n")
    summary = re.split(r"\n(?:Returns|Raises|Yields):\n", summary)[0].strip()
    descriptions: dict[str, str] = {}
    names: list[str] = []
    indent = None
    for line in rest.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            break
        indent = depth if indent is None else indent
        start = re.match(r"\s*(\w+(?:, \w+)*)(?: \([^)]*\))?:\s*(.*)", line)
        if depth == indent and start:
            names = start.group(1).split(", ")
            descriptions |= dict.fromkeys(names, start.group(2))
        else:
            for name in names:
                descriptions[name] += " " + line.strip()
    return summary, descriptions
