"""Where a broker is: URLs, bounds, and what may not travel in the clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qis_edge.core.errors import UsageError
from qis_edge.links.mqtt_settings import MqttSettings, is_loopback


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://localhost", {"host": "localhost", "port": 1883, "tls": False}),
        ("mqtts://broker.example", {"host": "broker.example", "port": 8883, "tls": True}),
        ("mqtt://[::1]:1999/", {"host": "::1", "port": 1999, "tls": False}),
        ("mqtt://me@localhost:1", {"user": "me", "password": None}),
        ("mqtts://me:a%2Fb@broker.example", {"user": "me", "password": "a/b"}),
        ("mqtt://BROKER.example", {"host": "broker.example"}),
    ],
)
def test_urls(url: str, expected: dict[str, Any]) -> None:
    settings = MqttSettings.from_url(url)
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:1883",
        "http://localhost",
        "mqtt://",
        "mqtt://localhost:port",
        "mqtt://localhost:99999",
        "mqtt://localhost/topic",
        "mqtt://localhost?x=1",
        "mqtt://[::1",
        "",
    ],
)
def test_what_is_not_such_a_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        MqttSettings.from_url(url)
    assert caught.value.field == "url"
    assert "mqtt" in (caught.value.hint or "")


def test_a_wrong_url_is_not_repeated_for_it_may_hold_a_password() -> None:
    with pytest.raises(UsageError) as caught:
        MqttSettings.from_url("mqtt://me:hunter2@localhost:port")
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)


def test_what_is_given_by_name_has_precedence() -> None:
    settings = MqttSettings.from_url("mqtt://one@localhost:1", user="two", keepalive=5)
    assert (settings.user, settings.keepalive, settings.port) == ("two", 5, 1)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "user@broker"}, "host"),
        ({"port": 70_000}, "port"),
        ({"port": -1}, "port"),
        ({"keepalive": 0}, "keepalive"),
        ({"window": 0}, "window"),
        ({"receive_window": 70_000}, "receive_window"),
        ({"session_expiry": -1}, "session_expiry"),
        ({"connect_timeout": 0}, "connect_timeout"),
        ({"ack_timeout": float("nan")}, "ack_timeout"),
        ({"retry_first": 0}, "retry_first"),
        ({"protocol": "3.1"}, "protocol"),
        ({"ca": Path("ca.pem")}, "ca"),
        ({"server_name": "broker"}, "server_name"),
        ({"tls": True, "key": Path("key.pem")}, "key"),
        ({"password": "x"}, "user"),
        ({"user": "me", "password": "x", "password_file": Path("x")}, "password_file"),
    ],
)
def test_values_out_of_bounds_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        MqttSettings(**values)
    assert caught.value.field == field


@pytest.mark.parametrize("secret", [{"password": "x"}, {"password_file": Path("x")}])
def test_a_password_does_not_travel_in_the_clear_by_accident(secret: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        MqttSettings(host="broker.example", user="me", **secret)
    assert caught.value.field == "tls"
    assert "insecure = true" in (caught.value.hint or "")
    for allowed in (
        {"host": "broker.example", "tls": True},
        {"host": "broker.example", "insecure": True},
        {"host": "localhost"},
        {"host": "127.0.0.2"},
        {"host": "::1"},
    ):
        MqttSettings(user="me", **(secret | allowed))


def test_a_user_name_alone_may() -> None:
    MqttSettings(host="broker.example", user="me")


@pytest.mark.parametrize("host", ["localhost.example", "10.0.0.1", "broker", "0.0.0.0", "::"])
def test_what_is_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


def test_neither_repr_nor_url_shows_a_password() -> None:
    settings = MqttSettings.from_url("mqtts://me:hunter2@broker.example")
    assert "hunter2" not in repr(settings)
    assert settings.url == "mqtts://broker.example:8883"
    assert MqttSettings(host="::1").url == "mqtt://[::1]:1883"


def test_a_password_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    assert MqttSettings(user="me", password_file=path).read_password() == "hunter2"
    assert MqttSettings(user="me", password="x").read_password() == "x"
    assert MqttSettings().read_password() is None


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"hunter2\n", 0o644, "can be read by others"),
        (b"hunter2\n", 0o640, "can be read by others"),
        (b"", 0o600, "has no password"),
        (b"\nhunter2\n", 0o600, "has no password"),
        (b"\xff\xfe", 0o600, "is not text"),
    ],
)
def test_a_password_file_that_will_not_do(
    tmp_path: Path, content: bytes, mode: int, words: str
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=words) as caught:
        MqttSettings(user="me", password_file=path).read_password()
    assert caught.value.field == "password_file"
    assert "hunter2" not in str(caught.value)
