"""The command line of a base station: ``qis-gateway VERB``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from qis_edge.cli.program import Verb, add_link_radio, add_state, make_parser, run
from qis_edge.cli.verbs import COMPLETION, config_verbs, doctor_verb, service_verbs


def _init(parser: ArgumentParser) -> None:
    parser.add_argument("--name", help="what to call this gateway (default: the machine's name)")
    parser.add_argument(
        "--site",
        help="the site: letters, digits, dots, dashes and underscores, part of the topics on "
        "the broker (default: site)",
    )
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="the broker to use, for the gateway and for its nodes (default: the embedded one)",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="where the embedded broker listens (default: 127.0.0.1:1883, this machine alone); "
        "any other address lets in whoever reaches it",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FILE",
        help="the root key of a fleet that exists, to join it or to renew this gateway's "
        "credential; it is read, not copied",
    )
    add_link_radio(parser)
    add_state(parser, "gateway")


def _permit(parser: ArgumentParser) -> None:
    parser.add_argument(
        "seconds", type=float, metavar="SECONDS", help="for how long; 0 ends it at once"
    )


def _approve(parser: ArgumentParser) -> None:
    parser.add_argument(
        "node",
        nargs="?",
        metavar="NODE",
        help="the name or the kid (or the beginning of it) of one who asks to join",
    )
    parser.add_argument("--name", help="call it this, whatever it asked for")
    parser.add_argument(
        "--request", type=Path, metavar="FILE", help="approve the enrolment in this file instead"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the credential into this file too"
    )


def _revoke(parser: ArgumentParser) -> None:
    parser.add_argument(
        "nodes",
        nargs="*",
        metavar="NODE",
        help="the name or the kid (or the beginning of it) of a node or a gateway",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FILE",
        help="the fleet's root key (default: root.key in the state folder)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the revocation list into this file too"
    )
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="take in a list that was made elsewhere"
    )


def _recall(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        metavar="DATE",
        help="only what was made since then, such as 2026-06-01 (default: all that they have)",
    )


def _query(parser: ArgumentParser) -> None:
    parser.add_argument("--domain", help="the domain template of the situation")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the situation; all of them, or with --bits the first ones",
    )
    parser.add_argument("--fingerprint", metavar="HEX", help="the address itself, 64 digits")
    parser.add_argument(
        "--bits",
        type=int,
        metavar="N",
        help="leading bits that addresses must share with it (default: 256, that address alone)",
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="the newest so many (default: 20)"
    )


def _copy(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="the URL of the engine that has the packets")
    parser.add_argument("target", metavar="TO", help="the URL of the engine that gets them")
    parser.add_argument(
        "--dry-run", action="store_true", help="only verify and count; deposit nothing"
    )
    parser.add_argument(
        "--restart", action="store_true", help="begin anew, whatever was copied before"
    )


def _hub(parser: ArgumentParser) -> None:
    parser.add_argument("engine", metavar="ENGINE", help="the URL of the engine to serve")
    parser.add_argument(
        "--tokens",
        type=Path,
        required=True,
        metavar="FILE",
        help="who may ask: on each line a name, a token, and read where it may only read",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8383",
        metavar="HOST:PORT",
        help="where to listen (default: 127.0.0.1:8383, this machine alone)",
    )
    parser.add_argument(
        "--cert", type=Path, metavar="FILE", help="the certificate for TLS, with its chain, in PEM"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="its key (default: in the same file)"
    )
    parser.add_argument(
        "--fleet",
        type=Path,
        metavar="DIR",
        help="the state folder of a gateway of the fleet: signatures are then checked, too",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="where relative paths of the engine begin (default: the working folder)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=1000,
        metavar="N",
        help="requests a second that one client may make (default: 1000)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="never drop what has expired: an archive"
    )


VERBS = (
    Verb(
        "init",
        "make keys, a fleet, the state folder and a configuration",
        "gateway.cli.setup:init",
        _init,
    ),
    config_verbs("gateway"),
    Verb("check", "say all that is wrong", "gateway.cli.setup:check", json=True),
    Verb("run", "run the gateway in the foreground", "gateway.cli.running:run"),
    Verb("status", "say how the gateway is doing", "gateway.cli.looking:status", json=True),
    Verb("nodes", "list the nodes, and who asks to join", "gateway.cli.looking:nodes", json=True),
    doctor_verb("gateway"),
    service_verbs("gateway"),
    Verb("permit", "let nodes ask to join for a while", "gateway.cli.joining:permit", _permit),
    Verb("approve", "make a node of one who asks to join", "gateway.cli.joining:approve", _approve),
    Verb("revoke", "take a key out of the fleet", "gateway.cli.joining:revoke", _revoke),
    Verb(
        "recall",
        "have the nodes send again what this gateway lost",
        "gateway.cli.recalling:recall",
        _recall,
    ),
    Verb("query", "show what an address holds", "gateway.cli.looking:query", _query, json=True),
    Verb(
        "copy",
        "copy everything from one routing engine into another",
        "gateway.cli.copying:copy",
        _copy,
        json=True,
    ),
    Verb(
        "hub",
        "serve a routing engine to other gateways",
        "gateway.cli.hub:hub",
        _hub,
        config=False,
    ),
    COMPLETION,
)


def parser() -> ArgumentParser:
    """The parser of ``qis-gateway``."""
    return make_parser(
        "qis-gateway",
        "A base station: proves packets, keeps them, routes them by situation.",
        "gateway",
        VERBS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
