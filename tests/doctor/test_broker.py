"""The broker's check, held to a real Mosquitto that is wrong in each way."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from qis_edge.doctor import broker as checks
from qis_edge.doctor.broker import Probe, check_broker
from qis_edge.links.mqtt_settings import MqttSettings
from tests.mosquitto import Mosquitto, free_port, running

KID = bytes(range(8))
NODE = Probe.node("farm", KID)
GATEWAY = Probe.gateway("farm", KID)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "GREETING", 0.2)


def codes(settings: MqttSettings, probe: Probe = NODE) -> dict[str, str]:
    found = list(check_broker(settings, probe))
    assert all(one.fix for one in found if one.severity)
    return {one.code: one.severity.label for one in found}


def at(broker: Mosquitto, **more: Any) -> MqttSettings:
    return MqttSettings(host="127.0.0.1", port=broker.port, **more)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Mosquitto]:
    with running(Mosquitto(tmp_path / "broker")) as broker:
        yield broker


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_a_good_broker(plain: Mosquitto, protocol: str) -> None:
    settings = at(plain, protocol=protocol)
    assert codes(settings) == {"broker": "ok", "gateway-silent": "notice"}
    assert codes(settings, GATEWAY) == {"broker": "ok"}


def test_a_gateway_that_answers(plain: Mosquitto) -> None:
    """Whatever comes back on the node's own topic is an answer."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    heard = threading.Event()
    gateway = Client(CallbackAPIVersion.VERSION2)
    heard_hello = []

    def answer(client: Client, _: Any, message: Any) -> None:
        heard_hello.append(message.payload)
        client.publish(message.topic.replace("/up/", "/down/"), b"greeting")

    gateway.on_message = answer
    gateway.on_subscribe = lambda *_: heard.set()
    gateway.connect("127.0.0.1", plain.port)
    gateway.loop_start()
    try:
        gateway.subscribe("qis/v1/farm/up/+", 1)
        assert heard.wait(60)
        checks.GREETING = 60.0  # it is put back by the fixture
        assert codes(at(plain)) == {"broker": "ok"}
    finally:
        gateway.disconnect()
        gateway.loop_stop()
    assert heard_hello == [NODE.payload]


def test_a_broker_that_is_not_there() -> None:
    nowhere = MqttSettings(host="127.0.0.1", port=free_port())
    assert codes(nowhere) == {"broker-unreachable": "error"}
    nobody = MqttSettings(host="no-such-host.invalid")
    assert codes(nobody) == {"broker-name": "error"}


def test_a_password_that_is_not_there(plain: Mosquitto, tmp_path: Path) -> None:
    settings = at(plain, user="u", password_file=tmp_path / "none")
    assert codes(settings) == {"broker-settings": "error"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Mosquitto]:
    """One user, who may use the node's topics, and another who may use none."""
    folder = tmp_path / "broker"
    folder.mkdir()
    for n, name in enumerate((KID.hex(), "other")):
        create = ["-c"] if n == 0 else []
        made = subprocess.run(
            ["mosquitto_passwd", "-b", *create, str(folder / "passwords"), name, "secret"],
            capture_output=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0
    (folder / "acl").write_text(
        "pattern write qis/v1/+/up/%u\npattern read qis/v1/+/down/%u\n"
        "user other\ntopic read qis/v1/other/#\n"
    )
    lines = [f"password_file {folder / 'passwords'}", f"acl_file {folder / 'acl'}"]
    with running(Mosquitto(folder, [*lines, "allow_anonymous false"])) as broker:
        yield broker


def test_who_is_let_in_and_may_send(guarded: Mosquitto) -> None:
    own = at(guarded, user=KID.hex(), password="secret")
    assert codes(own) == {"broker": "ok", "gateway-silent": "notice"}
    assert codes(at(guarded, user=KID.hex(), password="wrong")) == {"broker-login": "error"}
    assert codes(at(guarded)) == {"broker-login": "error"}
    other = at(guarded, user="other", password="secret")
    assert codes(other) == {"broker-forbidden": "error"}
    # MQTT 3.1.1 cannot tell: that nobody answers is all that there is.
    silent = at(guarded, user="other", password="secret", protocol="3.1.1")
    assert codes(silent) == {"broker": "ok", "gateway-silent": "notice"}


def certified(folder: Path, authority: trustme.CA, **more: Any) -> Mosquitto:
    folder.mkdir()
    made = authority.issue_cert("localhost", "127.0.0.1", **more)
    made.private_key_pem.write_to_path(folder / "key.pem")
    for blob in made.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    authority.cert_pem.write_to_path(folder.parent / "ca.pem")
    lines = [f"certfile {folder / 'cert.pem'}", f"keyfile {folder / 'key.pem'}"]
    return Mosquitto(folder, ["allow_anonymous true", *lines])


@pytest.mark.parametrize(
    ("days", "wanted"),
    [
        (365, {"broker": "ok", "gateway-silent": "notice"}),
        (5, {"broker-certificate": "warning", "broker": "ok", "gateway-silent": "notice"}),
        (-5, {"broker-certificate": "error"}),
    ],
)
def test_a_certificate_that_ends(tmp_path: Path, days: int, wanted: dict[str, str]) -> None:
    ends = datetime.now(UTC) + timedelta(days=days)
    begins = datetime.now(UTC) - timedelta(days=30)
    broker = certified(tmp_path / "b", trustme.CA(), not_after=ends, not_before=begins)
    with running(broker):
        assert codes(at(broker, tls=True, ca=tmp_path / "ca.pem")) == wanted


def test_tls_that_fails(tmp_path: Path, plain: Mosquitto) -> None:
    broker = certified(tmp_path / "b", trustme.CA())
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with running(broker):
        assert codes(at(broker, tls=True, ca=tmp_path / "other.pem")) == {"broker-tls": "error"}
        assert codes(at(plain, tls=True, ca=tmp_path / "ca.pem")) == {"broker-tls": "error"}
        assert codes(at(broker, tls=True, ca=tmp_path / "none")) == {"broker-tls": "error"}


def test_our_own_certificate(tmp_path: Path, plain: Mosquitto) -> None:
    authority = trustme.CA()
    ends = datetime.now(UTC) + timedelta(days=3)
    made = authority.issue_cert("node.example", not_after=ends)
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    broker = certified(tmp_path / "b", authority)
    with running(broker):
        found = codes(at(broker, tls=True, ca=tmp_path / "ca.pem", cert=tmp_path / "node.pem"))
    assert found["broker-certificate"] == "warning"
    assert found["broker"] == "ok"


def test_a_certificate_that_the_broker_wants(tmp_path: Path) -> None:
    authority = trustme.CA()
    broker = certified(tmp_path / "b", authority)
    wants = f"cafile {tmp_path / 'ca.pem'}\nrequire_certificate true\n"
    with (tmp_path / "b" / "mosquitto.conf").open("a") as file:
        file.write(wants)
    made = authority.issue_cert("node.example")
    made.private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    with running(broker):
        without = at(broker, tls=True, ca=tmp_path / "ca.pem")
        (found,) = check_broker(without, NODE)
        assert (found.code, found.severity.label) == ("broker-tls", "error")
        assert "certificate" in f"{found.message} {found.fix}"
        own = at(broker, tls=True, ca=tmp_path / "ca.pem", cert=tmp_path / "node.pem")
        assert codes(own)["broker"] == "ok"


def test_a_password_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """To another machine; here it is not even tried."""
    monkeypatch.setattr(socket, "getaddrinfo", _nobody)
    settings = MqttSettings(host="broker.example", user="u", password="p", insecure=True)
    assert codes(settings) == {"broker-insecure": "warning", "broker-name": "error"}


def _nobody(*_: Any, **__: Any) -> Any:
    raise OSError("no such name")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"", {"broker-unreachable"}),  # hangs up
        (b"\x20\x02\x00\x03", {"broker-unreachable"}),  # "server unavailable"
        (b"\x20\x02\x00\x05", {"broker-login"}),
        (b"\x20\x02\x00\x00", {"broker-forbidden"}),  # welcome, then hangs up
        (b"\xff\xff\xff\xff\xff\xff", {"broker-unreachable"}),  # no MQTT
    ],
)
def test_odd_brokers(answer: bytes, wanted: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PATIENCE", 5.0)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        if client.recv(1000):
                            client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        found = codes(MqttSettings(host="127.0.0.1", port=port, protocol="3.1.1"))
        assert set(found) == wanted
        server.shutdown(socket.SHUT_RDWR)
        thread.join(30)
