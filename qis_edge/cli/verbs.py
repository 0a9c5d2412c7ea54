"""The verbs that both commands have in the same form. Light: their code is loaded when called."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from qis_edge.cli.program import Verb


def config_verbs(package: str) -> Verb:
    """``config sample`` and ``config show``, of ``<package>.cli.configuring``."""
    handlers = f"{package}.cli.configuring"
    return Verb(
        "config",
        "show the configuration, or a sample of one",
        verbs=(
            Verb(
                "sample",
                "print a configuration with every setting explained",
                f"{handlers}:sample",
                config=False,
            ),
            Verb(
                "show", "say what is set, in which file or variable", f"{handlers}:show", json=True
            ),
        ),
    )


def doctor_verb(package: str) -> Verb:
    """``doctor``, of ``<package>.cli.doctor``."""
    return Verb(
        "doctor",
        "find what may be wrong with this machine and its surroundings",
        f"{package}.cli.doctor:doctor",
        json=True,
    )


def _completion(parser: ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish"
    )


COMPLETION = Verb(
    "completion",
    "print a script that completes this command in a shell",
    "qis_edge.cli.completion:completion",
    _completion,
    config=False,
)


def service_verbs(package: str) -> Verb:
    """``service install``, ``remove`` and ``show``, of ``<package>.cli.service``."""
    handlers = f"{package}.cli.service"
    return Verb(
        "service",
        "run it as a service of systemd",
        verbs=(
            Verb("install", "make a service of it", f"{handlers}:install", _install),
            Verb(
                "remove",
                "end the service and take it away",
                f"{handlers}:remove",
                _root,
                config=False,
            ),
            Verb("show", "print what would be installed", f"{handlers}:show", _common),
        ),
    )


def _install(parser: ArgumentParser) -> None:
    _common(parser)
    _root(parser)
    parser.add_argument("--now", action="store_true", help="start it now, and at each boot")


def _root(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="a root folder to work in, such as an image of a card: only files are changed there",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )


def _common(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--command",
        type=Path,
        metavar="PATH",
        help="the command that the service runs (default: the one of this installation)",
    )
    parser.add_argument(
        "--serial",
        action="store_true",
        help="let it use serial ports, whatever the configuration says now",
    )
