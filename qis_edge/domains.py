"""Finding domain templates: installed ones by name, others by the path of their file.

An installed template is an entry point of the group ``qis_edge.domains``: a function
without arguments that returns the template's text.
"""

from __future__ import annotations

from pathlib import Path

from qis_edge.core.domain import Domain
from qis_edge.core.errors import ConfigError, ConfigProblem
from qis_edge.core.template import nearest
from qis_edge.plugins import plugins

GROUP = "qis_edge.domains"
MAX_FILE = 1 << 18


def names() -> list[str]:
    """The installed templates, sorted."""
    return sorted({point.name for point in plugins(GROUP)})


def load(name: str) -> Domain:
    """The domain of an installed template, or of a TOML file (a name that has a slash or
    ends in ``.toml``).

    :raises ConfigError: there is none such, or it is wrong: then with all that is.
    """
    if "/" in name or name.endswith(".toml"):
        return _parse(_file_text(Path(name).expanduser(), name), name)
    return _parse(_installed_text(name), f"template {name}")


def _parse(text: str, source: str) -> Domain:
    try:
        return Domain.parse(text, source)
    except ConfigError as error:
        if any(problem.key == "TOML" for problem in error.problems):
            raise
    from qis_edge.schema.toml import key_lines  # lines are only looked up for errors

    return Domain.parse(text, source, lines=key_lines(text))


def _file_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise _problem(name, "there is no such file") from None
    except OSError as error:
        raise _problem(name, f"cannot be read ({error.strerror})") from None
    if len(raw) > MAX_FILE:
        raise _problem(name, f"larger than {MAX_FILE} bytes")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _problem(name, "not UTF-8 text") from None


def _installed_text(name: str) -> str:
    for point in plugins(GROUP, name):
        try:
            text = point.load()()
        except Exception as error:  # somebody else's package may raise anything
            raise _problem(name, f"{point.value} failed: {error!r}") from error
        if not isinstance(text, str):
            raise _problem(name, f"{point.value} returned no text")
        return text
    known = names()
    close = nearest(name, known)
    listed = f"installed are {', '.join(known)}" if known else "none is installed"
    raise _problem(
        name,
        "there is no such template",
        close or f"{listed}; a file is named by its path, which ends in .toml",
    )


def _problem(name: str, message: str, suggestion: str | None = None) -> ConfigError:
    return ConfigError([ConfigProblem(name, None, "domain", message, suggestion)])
