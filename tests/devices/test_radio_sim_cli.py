"""``qis-edge radio-sim``, as a process."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qis_edge.cli import main
from qis_edge.links.meshtastic_client import MeshtasticClient
from qis_edge.links.meshtastic_session import Outgoing, Taken

COMMAND = [sys.executable, "-m", "qis_edge", "radio-sim"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)


async def exchange(first: str, last: str) -> bytes:
    """Send from one radio to another; what arrived."""
    clients = MeshtasticClient(first), MeshtasticClient(last)
    try:
        async with asyncio.timeout(60):
            for client in clients:
                await client.start()
                while not client.room:
                    await client.changed()
            assert isinstance(await clients[0].send(Outgoing(b"hello")), Taken)
            return (await clients[1].receive()).payload
    finally:
        for client in clients:
            await client.close()


def stop(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return out


def test_radios_on_serial_ports(tmp_path: Path) -> None:
    process = start(
        *("--radios", "3", "--preset", "SHORT_FAST", "--line", "--rate", "20"),
        *("--links", str(tmp_path / "radios")),
    )
    assert process.stdout is not None
    ports = [process.stdout.readline().split() for _ in range(3)]
    assert ports[2] == ["!10000003", str(tmp_path / "radios" / "radio2")]
    assert asyncio.run(exchange(ports[0][1], ports[2][1])) == b"hello"  # over the one between
    assert stop(process).startswith("sent ")
    assert list((tmp_path / "radios").iterdir()) == []


def test_radios_on_tcp_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = start("--radios", "1", "--tcp", str(port))
    assert process.stdout is not None
    assert process.stdout.readline() == f"!10000001 tcp:127.0.0.1:{port}\n"
    stop(process)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--radios", "0"],
        ["--loss", "2"],
        ["--rate", "0"],
        ["--preset", "LONG_WISH"],
        ["--region", "MOON"],
        ["--tcp", "65536"],
    ],
)
def test_mistakes_are_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["radio-sim", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
