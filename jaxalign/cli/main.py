"""`jaxalign COMMAND`: finds the command, reads its flags and gin, runs it, and tells errors in one line.

Exit codes: 0 done, 2 a mistake that the user can fix (one line on stderr), 130 interrupted. Anything else is a
defect of the program and shows its traceback.
"""

import os
import re
import sys
import textwrap
from collections.abc import Sequence

from jaxalign import __version__
from jaxalign.cli.commands import COMMANDS, Command, Signature, UsageError, read_signature
from jaxalign.cli.flags import COMMON_FLAGS, did_you_mean, parse_flags
from jaxalign.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130
_WIDTH = 100
_COLUMN = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in arguments
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if verbose:
            raise
        print(f"jaxalign: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:
        # The reader of our output (head, less) has left; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # gin's copies of an error keep its text but not its file name.
        named = re.search(r"\[Errno \d+\] (.+?): '(.+?)'", str(error))
        if verbose or not named:
            raise
        print(f"jaxalign: {named.group(2)}: {named.group(1)}", file=sys.stderr)
        return USER_ERROR


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(_overview(), file=sys.stderr)
        return USER_ERROR
    name, *rest = arguments
    if name in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"jaxalign {__version__}")
        return 0
    if name.startswith("-"):
        raise UsageError(
            f"the command comes first: jaxalign COMMAND {name} ...; see jaxalign --help"
        )
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(
            f"unknown command {name}{did_you_mean(name, list(COMMANDS)) or f'; there are {known}'}"
        )
    command = COMMANDS[name]
    signature = read_signature(command)
    flags = parse_flags(rest, signature)
    if flags.help:
        print(_command_help(command, signature))
        return 0

    # TensorFlow and XLA write their start-up notes to stderr otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxalign.cli import gin_setup

    function = gin_setup.configure(flags, command, signature)
    if flags.dry_run:
        print(gin_setup.describe(function, command))
        return 0
    result = gin_setup.run(function, registers_tasks=command.registers_tasks)
    if command.done:
        print(command.done.format(result=result))
    return 0


def _one_line(error: Exception) -> str:
    # gin appends where the function was called from, on lines of its own.
    lines = (
        str(error)
        .split("\n  In call to configurable")[0]
        .split("\n  No values supplied")[0]
        .splitlines()
    )
    return " ".join(line.strip() for line in lines if line.strip())


def _overview() -> str:
    rows = [_row(command.name, command.summary) for command in COMMANDS.values()]
    return "\n".join(
        [
            "usage: jaxalign COMMAND [--gin_file=FILE] [--gin.NAME=VALUE] [--PARAMETER=VALUE] ...",
            "",
            "Align T5 encoder-decoder models offline, from logged feedback.",
            "",
            *rows,
            "",
            "jaxalign COMMAND --help lists the parameters of a command.",
        ]
    )


def _command_help(command: Command, signature: Signature) -> str:
    rows = []
    for parameter in signature.parameters.values():
        default = "required" if parameter.required else f"default {parameter.default}"
        text = parameter.description
        rows.append(
            _row(f"--{parameter.name}", f"{text} ({parameter.annotation}; {default})".strip())
        )
    return "\n".join(
        [
            f"usage: jaxalign {command.name} [--NAME=VALUE ...]",
            "",
            signature.summary,
            "",
            "Parameters (plain flags, or in gin as "
            f"{command.module.rpartition('.')[2]}.{command.function}.NAME):",
            *rows,
            "",
            "Configuration:",
            *[_row(f"--{name}", text) for name, text in COMMON_FLAGS.items()],
        ]
    )


def _row(left: str, right: str) -> str:
    wrapped = textwrap.wrap(right, _WIDTH - _COLUMN) or [""]
    first = f"  {left:<{_COLUMN - 3}} "
    if len(left) > _COLUMN - 3:
        return "\n".join([f"  {left}", *(" " * _COLUMN + line for line in wrapped)])
    return "\n".join([first + wrapped[0], *(" " * _COLUMN + line for line in wrapped[1:])])


if __name__ == "__main__":
    sys.exit(main())
