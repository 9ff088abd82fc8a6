"""Checks a parsed gin configuration for macros that nothing reads and for missing values.

gin itself accepts a misspelt macro (it is simply never read) and reports a missing value only when the
function is called. This module reports both before anything is computed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import gin
import gin.config

from jaxalign.cli import gin_types, t5x_names
from jaxalign.cli.commands import UsageError
from jaxalign.cli.flags import Setting, did_you_mean

_MACRO = "gin.macro"
_CONSTANT = "gin.constant"
_REQUIRED = "gin.REQUIRED"

# A macro with a list of functions that register seqio tasks, called before any command: [@tasks.register_jsonl_task].
REGISTER_TASKS = "REGISTER_TASKS"

# Macros that a file of `gin_configs/` sets, with the folder of that file.
_SET_BY = {
    "MODEL": "models",
    "POLICY": "models",
    "OBJECTIVE": "objectives",
    "OPTIMIZER": "optimizers",
    "MIXTURE_OR_TASK_NAME": "tasks",
    "TASK_FEATURE_LENGTHS": "tasks",
    "CACHE_DIR": "tasks",
    "VOCABULARY": "tasks",
    "EXTRA_IDS": "tasks",
}

Key = tuple[str, str]  # (scope, selector); a macro is (its name, "gin.macro")


def check(
    selector: str,
    settings: Iterable[Setting],
    *,
    also_used: str | None = None,
    with_tasks: bool = True,
) -> None:
    """Checks gin's configuration for the function with this selector: value types, unused settings, missing values.

    Args:
      selector: the full name of the command's function.
      settings: the settings of the command line; each must have an effect.
      also_used: the full name of a function whose bindings are also allowed on the command line, although they have no effect here.
      with_tasks: whether the functions of `REGISTER_TASKS` are called.

    Raises:
      UsageError: a value has another type, a macro is read but never set, a required value is missing, a reference is unknown,
        or nothing reads a command-line binding.
    """
    config: Mapping[Key, Mapping[str, Any]] = gin.config._CONFIG
    reached = _reachable(config, selector, with_tasks=with_tasks)
    gin_types.check(reached)
    known = reached if also_used is None else reached | _reachable(config, also_used)
    read = {scope for scope, name in known if name == _MACRO}
    used_selectors = {name for _, name in known}
    for setting in settings:
        _check_effect(setting, read, used_selectors)
    _check_t5x_macros(config, read)
    _check_required(config, reached)
    registrations()


def registrations() -> list[Any]:
    """Returns the functions to which `REGISTER_TASKS` refers.

    Raises:
      UsageError: the value is not a list of references without parentheses.
    """
    value = gin.config._CONFIG.get((REGISTER_TASKS, _MACRO), {}).get("value", [])
    if not isinstance(value, list) or not all(
        isinstance(item, gin.config.ConfigurableReference) and not item.evaluate for item in value
    ):
        raise UsageError(
            f"{REGISTER_TASKS} is a list of functions, without parentheses: [@tasks.register_jsonl_task]"
        )
    return value


def _check_required(config: Mapping[Key, Mapping[str, Any]], reached: set[Key]) -> None:
    macros = {scope for scope, name in config if name == _MACRO}
    unset = sorted(
        {name for owner in reached for name in _macros_read(config.get(owner, {}))} - macros
    )
    required = sorted(
        scope if name == _MACRO else f"{_label((scope, name))}.{parameter}"
        for scope, name in reached
        for parameter, value in config.get((scope, name), {}).items()
        if is_required(value)
    )
    if unset or required:
        missing = [*unset, *required]
        verb = "has" if len(missing) == 1 else "have"
        remedies = _remedies(unset, required)
        hint = next(filter(None, (did_you_mean(name, sorted(macros)) for name in unset)), "")
        raise UsageError(f"{', '.join(missing)} {verb} no value; {' and '.join(remedies)}{hint}")


def _remedies(unset: list[str], required: list[str]) -> list[str]:
    """Returns remedies for missing values: gin files to add for macros that a file sets, flags for the others."""
    folders = sorted({_SET_BY[name] for name in unset if name in _SET_BY})
    flags = [
        f"--{name}=..." if name.isupper() else f"--gin.{name}=..."
        for name in [*unset, *required]
        if name in required or name not in _SET_BY
    ]
    remedies = [f"add a --gin_file of {folder}/" for folder in folders]
    return [*remedies, f"set {' '.join(flags)}"] if flags else remedies


def _check_t5x_macros(config: Mapping[Key, Mapping[str, Any]], read: set[str]) -> None:
    """Refuses macros in files that only T5X reads, because a user who sets one expects an effect."""
    for name in sorted(scope for scope, selector in config if selector == _MACRO):
        told = t5x_names.advice(name)
        if name not in read and told is not None:
            raise UsageError(f"{name} has no effect: {told}")


def _check_effect(setting: Setting, read: set[str], used_selectors: set[str]) -> None:
    key, _, flag = setting
    if "." not in key:
        if key not in read:
            told = t5x_names.advice(key)
            hint = did_you_mean(key, sorted(read)) if told is None else f"; {told}"
            raise UsageError(f"{flag} has no effect: nothing reads the macro {key}{hint}")
        return
    name = key.rpartition("/")[2].rpartition(".")[0]
    matches = gin.config._REGISTRY.matching_selectors(name)
    if not used_selectors.intersection(matches):
        raise UsageError(f"{flag} has no effect: this configuration does not use {name}")


def _reachable(
    config: Mapping[Key, Mapping[str, Any]], selector: str, *, with_tasks: bool = True
) -> set[Key]:
    """Returns the keys of all bindings that a call of the function can read: its own, and those of its references."""
    by_selector: dict[str, list[Key]] = {}
    for key in config:
        by_selector.setdefault(key[1], []).append(key)
    reached: set[Key] = set()
    queue: list[Key] = [*by_selector.get(selector, []), ("", selector)]
    if with_tasks:
        queue.append((REGISTER_TASKS, _MACRO))
    while queue:
        key = queue.pop()
        if key in reached or (key[1] == _MACRO and key not in config):
            continue
        reached.add(key)
        for reference in gin.config.iterate_references(config.get(key, {})):
            name = reference.configurable.selector
            scope = "/".join(reference.scopes)
            if name == _CONSTANT:
                continue
            # A scoped reference also reads the unscoped bindings, so any scope is included, except for macros.
            queue += [(scope, name)] if name == _MACRO else [("", name), *by_selector.get(name, [])]
    return reached


def macros_read_by(selector: str) -> set[str]:
    """Returns the macros that a call of a function can read."""
    keys = _reachable(gin.config._CONFIG, selector, with_tasks=False)
    return {scope for scope, name in keys if name == _MACRO}


def called(selector: str) -> set[str]:
    """Returns the selectors called when a function's arguments are built: the references with parentheses that it reaches."""
    config = gin.config._CONFIG
    keys = _reachable(config, selector, with_tasks=False)
    return {
        reference.configurable.selector
        for key in keys
        for reference in gin.config.iterate_references(config.get(key, {}))
        if reference.evaluate
    }


def check_cycles() -> None:
    """Refuses macros that refer to each other in a cycle, which gin would follow without end.

    Raises:
      UsageError: there is a cycle; the message names the macros.
    """
    config = gin.config._CONFIG
    graph = {
        scope: sorted(_macros_read(parameters))
        for (scope, selector), parameters in config.items()
        if selector == _MACRO
    }
    done: set[str] = set()
    for start in sorted(graph):
        path: list[tuple[str, list[str]]] = [(start, list(graph[start]))]
        while path:
            name, rest = path[-1]
            if not rest:
                done.add(name)
                path.pop()
                continue
            following = rest.pop()
            names = [entry for entry, _ in path]
            if following in names:
                circle = " -> ".join([*names[names.index(following) :], following])
                raise UsageError(f"macros refer to each other in a circle: {circle}")
            if following in graph and following not in done:
                path.append((following, list(graph[following])))


def _macros_read(parameters: Mapping[str, Any]) -> set[str]:
    return {
        "/".join(reference.scopes)
        for reference in gin.config.iterate_references(parameters)
        if reference.configurable.selector == _MACRO
    }


def is_required(value: Any) -> bool:
    """Returns whether a bound value is ``%gin.REQUIRED``."""
    return (
        isinstance(value, gin.config.ConfigurableReference)
        and value.configurable.selector == _CONSTANT
        and value.scopes == [_REQUIRED]
    )


def _label(key: Key) -> str:
    scope, selector = key
    if selector == _MACRO:
        return f"the macro {scope}"
    prefix = f"{scope}/" if scope else ""
    return prefix + gin.config._REGISTRY.minimal_selector(selector)
