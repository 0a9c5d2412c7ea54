"""The command line of a node: ``qis-edge VERB``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from qis_edge.cli.program import Verb, add_link_radio, add_state, make_parser, run
from qis_edge.cli.verbs import COMPLETION, config_verbs, doctor_verb, service_verbs


def _init(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--fleet",
        type=Path,
        metavar="FILE",
        help="the fleet file that the gateway's owner handed out; needed the first time",
    )
    parser.add_argument("--name", help="what to call this node (default: the machine's name)")
    parser.add_argument(
        "--domain", default="weather", help="the domain template (default: %(default)s)"
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the situation; may be given again",
    )
    add_link_radio(parser)
    add_state(parser, "edge")


def _run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--test",
        action="store_true",
        help="read the sensors once, show the packet that would come of it, send nothing",
    )


def _queue(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="rows of each list (default: 20)"
    )
    parser.add_argument(
        "--retry",
        action="store_true",
        help="send again what was put aside because a gateway refused it: the cause was mended",
    )


def _enroll(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", help="wait until the gateway has approved"
    )
    parser.add_argument(
        "--request", type=Path, metavar="FILE", help="write the enrolment into a file"
    )
    parser.add_argument(
        "--credential",
        type=Path,
        metavar="FILE",
        help="install the credential that a gateway's owner made from that file",
    )


def _radio_sim(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--radios", type=int, default=2, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--preset",
        default="LONG_FAST",
        metavar="NAME",
        help="of the modem, as Meshtastic calls it (default: %(default)s)",
    )
    parser.add_argument(
        "--region",
        default="EU_868",
        metavar="NAME",
        help="whose law holds, as Meshtastic calls it (default: %(default)s)",
    )
    parser.add_argument(
        "--loss",
        type=float,
        default=0.0,
        metavar="P",
        help="probability that a frame is lost, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--line", action="store_true", help="each hears its neighbours only, the rest is hops"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=1.0,
        metavar="X",
        help="how many times as fast as real time (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)"
    )
    parser.add_argument(
        "--tcp",
        type=int,
        metavar="PORT",
        help="TCP ports of this machine, from this one on, in place of serial ports",
    )
    parser.add_argument(
        "--links", metavar="DIR", help="name the serial ports DIR/radio0, DIR/radio1, ..."
    )


def _radio(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--radio",
        default="auto",
        metavar="WHICH",
        help="a serial port, part of its name in /dev/serial/by-id, tcp:HOST:PORT, or auto: "
        "the one that is plugged in (default: %(default)s)",
    )


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=Path("radio.toml"),
        metavar="FILE",
        help="what radios are to be set to (default: %(default)s)",
    )
    _radio(parser)
    parser.add_argument(
        "--relay", action="store_true", help="it is to stand alone and pass on what it hears"
    )
    parser.add_argument("--name", help="what to call this radio, in place of the file's name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="say what would change, change nothing"
    )
    what.add_argument(
        "--new-key", action="store_true", help="draw the channel's key and touch no radio"
    )
    what.add_argument(
        "--sample", action="store_true", help="print a file to begin with and touch no radio"
    )


def _ping(parser: ArgumentParser) -> None:
    _radio(parser)
    parser.add_argument(
        "--count", type=int, metavar="N", help="so many times (default: until Ctrl-C)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="between two (default: what the airtime allows)",
    )
    parser.add_argument("--answer", action="store_true", help="answer others in place of asking")
    parser.add_argument("--size", type=int, metavar="BYTES", help="of what is sent")
    parser.add_argument(
        "--channel",
        type=int,
        default=0,
        metavar="INDEX",
        help="the radio's channel, 0 to 7 (default: %(default)s)",
    )


RADIO_VERBS = (
    Verb(
        "configure",
        "set a radio up as a file says, and check that it is",
        "devices.radio_config.cli:run",  # by name: the package does not stand on its devices
        _configure,
        json=True,
        config=False,
    ),
    Verb(
        "list",
        "say which radios are plugged in, and how they are set up",
        "devices.radio_config.cli:show",
        _radio,
        json=True,
        config=False,
    ),
    Verb(
        "ping",
        "see how well another radio is reached from here",
        "qis_edge.cli.radio_ping:run",
        _ping,
        json=True,
        config=False,
    ),
)

VERBS = (
    Verb(
        "init",
        "make the key, the state folder and a configuration",
        "qis_edge.cli.setup:init",
        _init,
    ),
    config_verbs("qis_edge"),
    Verb("check", "say all that is wrong", "qis_edge.cli.setup:check", json=True),
    Verb("run", "run the node in the foreground", "qis_edge.cli.running:run", _run, json=True),
    Verb("status", "say how the node is doing", "qis_edge.cli.looking:status", json=True),
    Verb(
        "queue",
        "list what has not been delivered yet",
        "qis_edge.cli.looking:queue",
        _queue,
        json=True,
    ),
    Verb("enroll", "join the fleet", "qis_edge.cli.joining:enroll", _enroll, json=True),
    doctor_verb("qis_edge"),
    service_verbs("qis_edge"),
    Verb("radio", "configure, list and try Meshtastic radios", verbs=RADIO_VERBS),
    Verb(
        "radio-sim",
        "emulate Meshtastic radios on serial or TCP ports",
        "devices.radio_sim.cli:run",  # by name: the package does not stand on its devices
        _radio_sim,
    ),
    COMPLETION,
)


def parser() -> ArgumentParser:
    """The parser of ``qis-edge``."""
    return make_parser(
        "qis-edge", "A field node: senses, distils, signs, stores, forwards.", "edge", VERBS
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
