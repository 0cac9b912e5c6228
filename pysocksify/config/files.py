"""Configuration files: where they are looked for, and reading one into a table."""

import os
import sys

from pysocksify.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SYSTEM_DIRECTORY = "/etc/pysocksify"
DEFAULT_FILE = "config.toml"


def directories(environ: "Mapping[str, str]") -> tuple[str, str]:
    """The user's directory of configuration files (XDG Base Directory specification), then the machine's."""
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # as the specification asks for unset, empty and relative ones
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(base, "pysocksify"), SYSTEM_DIRECTORY


def named(name: str, source: str, environ: "Mapping[str, str]") -> str:
    """The path of the file that -c or PYSOCKSIFY_CONFIG (`source`) means: a path, or a name in the directories.

    Raises ConfigError when there is no file of this name. A path isn't looked at.
    """
    if not name:
        raise ConfigError(source, "", "the file's name is empty")
    if os.sep in name or name.endswith(".toml") or (os.path.exists(name) and not os.path.isdir(name)):
        return name
    tried = [os.path.join(directory, f"{name}.toml") for directory in directories(environ)]
    for path in tried:
        if os.path.lexists(path):
            return path
    raise ConfigError(source, name, f"there is no such file, nor {' or '.join(tried)}")


def default(environ: "Mapping[str, str]") -> str:
    """The path of the file that counts when none is named; "" when there is none.

    One that is there and can't be read counts too: to pass over it would be to use another proxy than was meant.
    """
    for directory in directories(environ):
        path = os.path.join(directory, DEFAULT_FILE)
        if os.path.lexists(path):
            return path
    return ""


def beside(path: str, name: str) -> str:
    """The path that a file's text means: beside that file, unless it is absolute or begins with ~."""
    return os.path.join(os.path.dirname(path), os.path.expanduser(name))


def read(path: str) -> "dict[str, Any]":
    """The table in a TOML file. Raises ConfigError when it can't be read or isn't TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, "", f"not TOML: line {line} is not UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, "", f"not TOML: {error}") from None
