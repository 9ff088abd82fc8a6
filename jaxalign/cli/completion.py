"""Completion of `jaxalign` in a shell: commands, flags, macros of the gin files, and gin files; the shell completes other paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxalign import files
from jaxalign.cli.commands import COMMANDS, UsageError, read_signature
from jaxalign.cli.flags import COMMON_FLAGS, other_names

_MACRO = re.compile(r"^([A-Z][A-Z0-9_]+) = ", re.MULTILINE)
# Commands that read gin files with macros; the others have plain flags alone.
_WITH_MACROS = ("train", "plan", "rounds", "sweep", "cache", "convert")

_SCRIPTS = {
    "bash": """\
_jaxalign() {
    local line=${COMP_LINE:0:COMP_POINT} word found
    word=${line##* }
    COMPREPLY=()
    while IFS= read -r found; do
        # '=' ends a word of bash, so that only what comes after it is completed.
        [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && found=${found#*=}
        COMPREPLY+=("$found")
    done < <(jaxalign __complete "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace
}
complete -o default -F _jaxalign jaxalign
""",
    "zsh": """\
_jaxalign() {
    local -a found
    found=("${(@f)$(jaxalign __complete "${LBUFFER}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then compadd -S '' -- "${found[@]}"; else compset -P '*='; _files; fi
}
compdef _jaxalign jaxalign
""",
    "fish": """\
complete -c jaxalign -a '(jaxalign __complete (commandline -cp) 2>/dev/null)'
""",
}
_INSTALL = {
    "bash": 'eval "$(jaxalign completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(jaxalign completion zsh)"   # in ~/.zshrc, after compinit',
    "fish": "jaxalign completion fish | source   # in ~/.config/fish/config.fish",
}


def script(arguments: list[str]) -> str:
    """Returns the script that a shell evaluates.

    Raises:
      UsageError: the only argument is no shell that is known.
    """
    if len(arguments) != 1 or arguments[0] not in _SCRIPTS:
        said = "\n".join(f"  {line}" for line in _INSTALL.values())
        raise UsageError(f"jaxalign completion SHELL, with one of {', '.join(_SCRIPTS)}:\n{said}")
    return _SCRIPTS[arguments[0]]


def candidates(line: str) -> list[str]:
    """Returns what the last word of a line can become.

    >>> candidates("jaxalign gen")
    ['generate']
    """
    words = line.split()
    last = "" if not words or line[-1:].isspace() else words.pop()
    if not words:
        return []
    if len(words) == 1:
        return _starting([*COMMANDS, "completion", "help"], last)
    command = COMMANDS.get(words[1])
    if command is None:
        return ["bash", "zsh", "fish"] if words[1:] == ["completion"] else []
    flag, equals, value = last.partition("=")
    if flag == "--gin_file" and equals:
        return [f"--gin_file={file}" for file in _gin_files(value)]
    if words[-1] == "--gin_file" and not last.startswith("--"):
        return list(_gin_files(last))
    if equals or not last.startswith("-"):
        return []
    signature = read_signature(command)
    parameters = list(signature.parameters)
    same = [alias for name in parameters for alias in other_names(name, signature)]
    names = [*parameters, *same, *COMMON_FLAGS]
    flags = [f"--{name}" for name in names if name.islower()]
    if command.name in _WITH_MACROS:
        flags += [f"--{name}=" for name in _macros()]
    return _starting(flags, last)


def _starting(names: Iterable[str], start: str) -> list[str]:
    return sorted({name for name in names if name.startswith(start)})


def _gin_files(start: str) -> Iterator[str]:
    """Yields jaxalign's own gin files by their names there, and those of the current folder, by their beginning."""
    configs = files.gin_configs()
    if configs is not None:
        own = (path.relative_to(configs).as_posix() for path in configs.rglob("*.gin"))
        yield from _starting(own, start)
    folder = Path(start) if start.endswith("/") else Path(start).parent
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            name = path.as_posix() + ("/" if path.is_dir() else "")
            if name.startswith(start) and (path.is_dir() or path.suffix == ".gin"):
                yield name


def _macros() -> list[str]:
    configs = files.gin_configs()
    if configs is None:
        return []
    return sorted(
        {name for path in configs.rglob("*.gin") for name in _MACRO.findall(path.read_text())}
    )
