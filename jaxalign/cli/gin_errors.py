"""Reports gin's errors in one line: file, line, the error, and the nearest existing name."""

import contextlib
import inspect
import os
import re
import sys
import tokenize
from collections.abc import Iterator

import gin.config

from jaxalign.cli.commands import UsageError
from jaxalign.cli.flags import did_you_mean

_PARSE_ERRORS = (
    SyntaxError,
    tokenize.TokenError,
    ValueError,
    LookupError,
    NameError,
    AttributeError,
    ImportError,
    OSError,
)


@contextlib.contextmanager
def explained(source: str) -> Iterator[None]:
    """Converts gin's errors, which span lines and may include the whole configuration, to one line."""
    try:
        yield
    except UsageError:
        raise
    except _PARSE_ERRORS as error:
        raise UsageError(_explain(error, source)) from error


def _explain(error: Exception, source: str) -> str:
    if isinstance(error, SyntaxError):
        where = f"{_shortest(error.filename)}:{error.lineno}" if error.filename else source
        line = f" in {error.text.strip()!r}" if error.text else ""
        return f"{where}: {error.msg.splitlines()[0]}{line}"
    if isinstance(error, tokenize.TokenError):
        return f"{source}: {error.args[0]} at line {error.args[1][0]}; is a bracket or quote left open?"
    message = str(error).split("\n")[0]
    if isinstance(error, KeyError):
        message = message.strip("'\"")
    locations = re.findall(r'In file "([^"]*)", line (\d+)', str(error))
    # An include adds one location for each level; the first is the location of the error.
    where = f"{_shortest(locations[0][0])}:{locations[0][1]}" if locations else source
    return f"{where}: {_reworded(message)}"


def _reworded(message: str) -> str:
    parameter = re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", message)
    if parameter:
        selector, name = parameter.groups()
        hint = did_you_mean(name, _parameters_of(selector))
        return f"{selector} has no parameter {name}{hint}"
    selector = re.match(r"No configurable matching (?:reference )?'@?([^']+)'", message)
    if selector:
        name = selector.group(1).removesuffix("()")
        known = {known.rpartition(".")[2] for known, _ in gin.config._REGISTRY.items()}
        hint = did_you_mean(name.rpartition(".")[2], sorted(known))
        if not hint and name.partition(".")[0] in sys.modules and "." in name:
            hint = "; a gin file that names what it imports begins with `from __gin__ import dynamic_registration`"
        return f"nothing is called {name}{hint}"
    attribute = re.match(
        r"Couldn't resolve selector (\S+); <module '([\w.]+)'.* has no attribute (\w+)", message
    )
    if attribute:
        _, module, name = attribute.groups()
        return f"{module} has no {name}{did_you_mean(name, dir(sys.modules[module]))}"
    unopened = re.match(r"Unable to open file: (\S+)\. Searched", message)
    if unopened:
        return f"gin file {unopened.group(1)} not found"
    return message


def _shortest(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _parameters_of(selector: str) -> list[str]:
    """Returns the names of the parameters of a registered function or class, for suggestions."""
    matches = gin.config._REGISTRY.matching_selectors(selector)
    if len(matches) != 1:
        return []
    return list(inspect.signature(gin.config._REGISTRY[matches[0]].wrapped).parameters)
