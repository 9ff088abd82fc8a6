"""The program `jaxalign COMMAND`: finds the command, reads its flags and gin files, runs it, and reports errors in one line.

Exit codes: 0 success, 2 an error that the user can correct (one line on stderr), 3 waiting for labels, 75 stopped by SIGTERM or a
maintenance notice after saving, 76 another process of the job was lost, 130 interrupted. Any other error is a defect of the program and
shows its traceback.
"""

import contextlib
import dataclasses
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxalign.cli import compilation_cache
from jaxalign.cli.commands import COMMANDS, Command, Signature, UsageError, read_signature
from jaxalign.cli.flags import (
    COMMON_FLAGS,
    Flags,
    did_you_mean,
    other_names,
    parse_flags,
    passed_on,
)
from jaxalign.errors import UserError
from jaxalign.files import disk_problem
from jaxalign.parallel import processes
from jaxalign.parallel.processes import EXIT_LOST_PROCESS
from jaxalign.version import __version__

USER_ERROR = 2
INTERRUPTED = 130
_WIDTH = 100
_COLUMN = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_with_one_line_errors(lambda: _run(arguments), verbose="--verbose" in arguments)


def run_with_one_line_errors(run: Callable[[], int], *, verbose: bool = False) -> int:
    """Returns the exit code of `run`; reports its errors in one line, or with their traceback if requested or if they are defects."""
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _left(INTERRUPTED, alike=False)
    except UserError as error:
        if verbose and not _joined():
            raise
        if verbose:
            traceback.print_exc()
        print(f"jaxalign: {_one_line(error)}", file=sys.stderr)
        return _left(EXIT_LOST_PROCESS if _missing_process(error) else USER_ERROR)
    except BrokenPipeError:
        # The reader of our output (head, less) has exited; Python would report this again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        lost = _lost_process(error)
        if lost is not None:
            if verbose:
                traceback.print_exc()
            print(f"jaxalign: {lost}", file=sys.stderr)
            return _left(EXIT_LOST_PROCESS, alike=False)
        full = disk_problem(error)
        if full is not None and not verbose:
            print(
                f"jaxalign: the disk cannot be written or read: {full}; make room or choose another folder, and give the command again",
                file=sys.stderr,
            )
            return _left(USER_ERROR)
        platform = re.match(r"Unable to initialize backend '(\w+)'", str(error))
        if platform and not verbose and not _joined():
            print(
                f"jaxalign: JAX finds no device of the platform {platform.group(1)!r} that JAX_PLATFORMS asks for; unset it, or set "
                "JAX_PLATFORMS=cpu",
                file=sys.stderr,
            )
            return USER_ERROR
        # gin's copies of an error keep its text but not its file name.
        named = isinstance(error, OSError) and re.search(
            r"\[Errno \d+\] (.+?): '(.+?)'", str(error)
        )
        if verbose or not named:
            if not _joined():
                raise
            traceback.print_exc()
            return _left(1)
        print(f"jaxalign: {named.group(2)}: {named.group(1)}", file=sys.stderr)
        return _left(USER_ERROR)


def _distributed() -> Any:
    """Returns the module that communicates with other processes, if it has been imported, else None."""
    return sys.modules.get("jaxalign.parallel.distributed")


def _joined() -> bool:
    module = _distributed()
    return module is not None and module.is_initialized()


def _missing_process(error: Exception) -> bool:
    module = _distributed()
    return module is not None and isinstance(error, module.MissingProcessError)


def _lost_process(error: Exception) -> str | None:
    return _distributed().lost_process_message(error) if _joined() else None


def _left(code: int, *, alike: bool = True) -> int:
    """Ends a process of a job at once, because JAX's own exit waits for the others; ``alike``: the others may be failing too."""
    if _joined():
        if alike:
            _distributed().wait_before_exit()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


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
    if name in ("completion", "__complete"):
        from jaxalign.cli import completion

        if name == "completion":
            print(completion.script(rest), end="")
        else:
            print("\n".join(completion.candidates(" ".join(rest))))
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
    if command.positional and rest and not rest[0].startswith("-"):
        rest[0] = f"--{command.positional}={rest[0]}"
    flags = parse_flags(rest, signature)
    if flags.help:
        print(_command_help(command, signature))
        return 0

    launch = processes.find_process_config(
        flags.coordinator_address, flags.num_processes, flags.process_id
    )
    if not command.distributed and flags.coordinator_address is not None:
        raise UsageError(
            f"{name} runs in one process; --coordinator_address is for: jaxalign train"
        )
    _check_model_devices(command, flags.model_devices)
    with _compiled_kept(command, flags):
        if launch is None or not command.distributed or flags.dry_run:
            return _run_command(command, signature, flags, None)
        verbose = flags.verbose
        return processes.run_guarded(
            lambda: run_with_one_line_errors(
                lambda: _run_command(command, signature, flags, launch), verbose=verbose
            )
        )


def _check_model_devices(command: Command, given: int | None) -> None:
    if given is None:
        return
    if not command.reads_networks:
        reading = ", ".join(name for name, each in COMMANDS.items() if each.reads_networks)
        also = "; train divides networks with --MESH_TENSOR" if command.distributed else ""
        raise UsageError(f"--model_devices is for {reading}, not for {command.name}{also}")
    if given < 1:
        raise UsageError(f"--model_devices={given} must be at least 1")


def _compiled_kept(command: Command, flags: Flags) -> contextlib.AbstractContextManager[None]:
    kept = command.keeps_compiled and not flags.dry_run
    return compilation_cache.kept() if kept else contextlib.nullcontext()


def _divided(parts: int | None) -> contextlib.AbstractContextManager[None]:
    if parts is None:
        return contextlib.nullcontext()
    from jaxalign.parallel import row_devices

    return row_devices.divided_networks(parts)


def _run_command(
    command: Command, signature: Signature, flags: Flags, launch: processes.ProcessConfig | None
) -> int:
    # Without this setting TensorFlow and XLA write start-up messages to stderr.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxalign.cli import gin_setup

    if command.passes_on:
        flags.parameters[command.passes_on] = passed_on(flags)
        flags = dataclasses.replace(flags, gin_file=[], gin_import=[], settings=[])
    function = gin_setup.configure(flags, command, signature)
    if flags.config_as_gin and not flags.dry_run:
        print("\n".join(flags.config_as_gin), file=sys.stderr)
    if flags.dry_run:
        print(gin_setup.describe(function, command))
        return 0
    first = True
    if launch is not None:
        from jaxalign.parallel import distributed

        distributed.initialize(launch)
        first = distributed.is_primary_process()
    with _divided(flags.model_devices):
        result = gin_setup.run(function, command)
    if command.done and first:
        from jaxalign.cli import gin_settings

        values = {
            "result": result,
            "best": _best(result),
            "folder": gin_settings.bound_value(command.selector, "model_dir"),
        }
        print(command.done.format(**values))
        if command.next:
            print(f"next: {command.next.format(**values)}")
    return 0


def _best(result: Any) -> str:
    """Returns what a run's summary says of its end: whether it ended early, and its best step."""
    if not isinstance(result, dict):
        return ""
    patience, best = result.get("ended_early_with_patience"), result.get("best")
    early = f", early, after {patience} evaluations without a better one" if patience else ""
    return early + (
        f"; the best is step {best['step']} ({best['metric']} {best['value']:.4g})" if best else ""
    )


def _one_line(error: Exception) -> str:
    # gin appends the location of the call on separate lines.
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
            "usage: jaxalign COMMAND [--gin_file=FILE] [--MACRO=VALUE] [--parameter=VALUE] ...",
            "",
            "Align T5 encoder-decoder models offline, from logged feedback.",
            "",
            *rows,
            "",
            "jaxalign COMMAND --help lists the parameters of a command; jaxalign completion bash (zsh, fish) completes them.",
        ]
    )


def _command_help(command: Command, signature: Signature) -> str:
    rows = []
    for parameter in signature.parameters.values():
        default = "required" if parameter.required else f"default {parameter.default}"
        text = parameter.description
        names = [parameter.name, *other_names(parameter.name, signature)]
        rows.append(
            _row(
                ", ".join(f"--{name}" for name in names),
                f"{text} ({parameter.annotation}; {default})".strip(),
            )
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
