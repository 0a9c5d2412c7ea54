"""What both command lines share: verbs, errors, exit codes, output.

A verb's code is imported when it is called, so that ``--help`` and ``status`` stay quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qis_edge.cli.owner import find_credentials
from qis_edge.core.errors import ConfigError, NotRunning, QisError, UsageError
from qis_edge.terminal import harmless, is_journal

#: Exit codes. 2 is argparse's too.
OK, PROBLEM, USAGE, NOT_RUNNING, WARNED = 0, 1, 2, 3, 4
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of a command.

    :param handler: ``module:function``, called with the parsed arguments; returns an exit
        code.
    :param arguments: adds the verb's own arguments.
    :param json: whether it has ``--json``.
    :param config: whether it has ``--config``.
    :param verbs: a group has these in place of a handler: ``qis-edge radio ping``.
    """

    name: str
    help: str
    handler: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    json: bool = False
    config: bool = True
    verbs: tuple[Verb, ...] = ()


def full_names(verbs: Sequence[Verb]) -> Iterator[str]:
    """Every verb as it is typed, those of groups with their group: ``radio ping``."""
    for verb in verbs:
        if verb.verbs:
            yield from (f"{verb.name} {name}" for name in full_names(verb.verbs))
        else:
            yield verb.name


def make_parser(
    program: str, description: str, role: str, verbs: Sequence[Verb]
) -> argparse.ArgumentParser:
    """The parser of a command.

    :param role: ``edge`` or ``gateway``: whose configuration is meant.
    """
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"the configuration (default: $QIS_{role.upper()}_CONFIG, or config.toml in "
        f"/etc/qis-{role} for root and ~/.config/qis-{role} for others)",
    )
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    _add_verbs(parser, verbs, config)
    return parser


def _add_verbs(
    parser: argparse.ArgumentParser, verbs: Sequence[Verb], config: argparse.ArgumentParser
) -> None:
    subparsers = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in verbs:
        one = subparsers.add_parser(
            verb.name,
            help=verb.help,
            description=_sentence(verb.help),
            parents=[config] if verb.config and not verb.verbs else [],
        )
        if verb.verbs:
            _add_verbs(one, verb.verbs, config)
            continue
        if verb.json:
            one.add_argument("--json", action="store_true", help="for programs, in a stable form")
        if verb.arguments is not None:
            verb.arguments(one)
        one.set_defaults(handler=verb.handler)


def add_link_radio(parser: argparse.ArgumentParser) -> None:
    """The option that names the radio of a new configuration."""
    parser.add_argument(
        "--radio",
        metavar="PORT",
        help="a Meshtastic radio to use: a port, part of its name in /dev/serial/by-id, auto, or "
        "tcp:HOST[:PORT]",
    )


def add_state(parser: argparse.ArgumentParser, role: str) -> None:
    """Add ``--state``, which both commands' ``init`` have."""
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="the state folder (default: state beside a configuration given with --config, "
        f"otherwise /var/lib/qis-{role} for root and ~/.local/state/qis-{role} for others)",
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from qis_edge import __version__

        print(parser.prog, __version__)
        parser.exit(OK)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, call the verb, and say what went wrong in words.

    :returns: the exit code.
    """
    try:
        args = parser.parse_args(argv)
        args.program = parser.prog
        find_credentials(parser.prog)
        module, _, function = args.handler.partition(":")
        code = getattr(importlib.import_module(module), function)(args)
        sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # Whoever read our output has had enough; Python would complain again when it ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PROBLEM
    except KeyboardInterrupt:
        return INTERRUPTED
    except QisError as error:
        return report(error)
    except OSError as error:
        name = f"{harmless(error.filename)}: " if error.filename else ""
        complain(f"{name}{error.strerror or error}")
        return PROBLEM
    except Exception as error:
        if os.environ.get("QIS_DEBUG"):
            raise
        complain(
            f"internal error: {type(error).__name__}: {error}",
            "this is a fault of ours; with QIS_DEBUG=1 it says where",
        )
        return PROBLEM


def report(error: QisError) -> int:
    """Say what went wrong, and return its exit code."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            complain(str(problem))
        _fix(error.hint)
        return USAGE
    complain(str(error), error.hint)
    if isinstance(error, NotRunning):
        return NOT_RUNNING
    return USAGE if isinstance(error, UsageError) else PROBLEM


def complain(message: str, hint: str | None = None) -> None:
    """``error: …`` and ``fix: …`` on standard error."""
    for line in message.splitlines() or [""]:
        _say(f"error: {harmless(line)}", 3)
    _fix(hint)


def _fix(hint: str | None) -> None:
    if hint:
        _say(f"fix: {harmless(hint)}", 3)


def note(message: str) -> None:
    """A remark on standard error, so that what is read stays clean."""
    _say(f"note: {harmless(message)}", 5)


def _say(line: str, priority: int) -> None:
    """:param priority: as syslog counts them, for systemd's journal."""
    mark = f"<{priority}>" if is_journal(sys.stderr) else ""
    print(f"{mark}{line}", file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object; bytes in hexadecimal. Control characters are escaped by JSON."""
    print(json.dumps(value, indent=2, default=_plain))


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)


def start_command(args: argparse.Namespace) -> str:
    """The command that starts the daemon whose configuration was meant."""
    where = f" --config {args.config}" if args.config is not None else ""
    return f"{args.program} run{where}"


@contextlib.contextmanager
def collecting(problems: list[dict[str, Any]], subject: str) -> Iterator[None]:
    """Note the :class:`QisError` of a block as problems of ``subject``, and go on."""
    try:
        yield
    except ConfigError as error:
        problems += [
            {
                "subject": subject,
                "file": one.file,
                "line": one.line,
                "key": one.key,
                "message": one.message,
                "fix": one.suggestion or error.hint,
            }
            for one in error.problems
        ]
    except QisError as error:
        problems.append(problem(subject, str(error), error.hint))


def problem(subject: str, message: str, fix: str | None = None) -> dict[str, Any]:
    """One thing that ``check`` found."""
    return {
        "subject": subject,
        "file": None,
        "line": None,
        "key": None,
        "message": message,
        "fix": fix,
    }


def show_check(problems: Sequence[Mapping[str, Any]], good: Sequence[str], *, as_json: bool) -> int:
    """What ``check`` found, and its exit code: 2 where the configuration is at fault."""
    if as_json:
        print_json({"ok": not problems, "problems": list(problems)})
    else:
        for line in good:
            print(f"ok: {harmless(line)}")
        for one in problems:
            place = one["file"] or ""
            place += f":{one['line']}" if one["line"] else ""
            key = f"{one['key']}: " if one["key"] else ""
            complain(f"{place}: {key}{one['message']}" if place else f"{one['message']}")
            _fix(one["fix"])
    if not problems:
        return OK
    return USAGE if any(one["subject"] == "config" for one in problems) else PROBLEM
