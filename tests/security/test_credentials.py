"""Secrets that systemd hands over are found by ``credential:NAME``; what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import load_gateway
from gateway.hub import Tokens
from gateway.routing.access import tls_of
from gateway.routing.url import EngineUrl
from qis_edge.config import load_node
from qis_edge.core.errors import ConfigError, KeyFileError, RoutingError, UsageError
from qis_edge.core.identity import Identity
from qis_edge.keys import read_key, write_key
from qis_edge.links.mqtt_settings import MqttSettings
from qis_edge.systemd_credentials import find

NODE = """
[node]
name = "a"
state = "state"
key = "credential:node.key"
[situation]
domain = "weather"
fields = { climate = "cfb", terrain = "coast", season = "winter" }
[[sensor]]
driver = "system"
channels = { cpu_temperature = "temperature" }
[links.mqtt]
url = "mqtts://localhost"
username = "a"
password_file = "credential:mqtt.password"
cert = "credential:cert.pem"
key = "credential:tls.key"
"""
GATEWAY = """
[gateway]
name = "g"
key = "credential:gateway.key"
[broker]
password_file = "credential:broker.passwords"
"""


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What systemd makes: a folder, and files with a mask that looks like the group's bits."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o500)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    return folder


def hand_over(folder: Path, name: str, text: str = "secret\n") -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o440)
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_every_secret_of_a_node_can_be_handed_over(handed_over: Path, tmp_path: Path) -> None:
    me = Identity.generate()
    write_key(handed_over / "node.key", me)
    (handed_over / "node.key").chmod(0o440)
    for name in ("mqtt.password", "cert.pem", "tls.key"):
        hand_over(handed_over, name)
    config = load_node(written(tmp_path, NODE))
    assert read_key(config.node.key_file).kid == me.kid
    assert config.links.mqtt is not None
    settings = config.links.mqtt.settings()
    assert settings.read_password() == "secret"
    assert (settings.cert, settings.key) == (handed_over / "cert.pem", handed_over / "tls.key")


def test_those_of_a_gateway_too(handed_over: Path, tmp_path: Path) -> None:
    me = Identity.generate()
    write_key(handed_over / "gateway.key", me)
    hand_over(handed_over, "broker.passwords", "name:$argon2id$x\n")
    config = load_gateway(written(tmp_path, GATEWAY))
    assert read_key(config.gateway.key_file).kid == me.kid
    assert config.broker.password_file == handed_over / "broker.passwords"


def test_those_of_engines_and_of_the_hub_too(handed_over: Path) -> None:
    hand_over(handed_over, "token")
    tls = hand_over(handed_over, "tls.key")
    url = EngineUrl.parse(
        "redis://h?password_file=credential:token&tls=yes&cert=c&cert_key=credential:tls.key"
    )
    assert url.option("password") == "secret"
    found = tls_of(url)
    assert found is not None
    assert found.key == str(tls)
    hand_over(handed_over, "tokens", f"base {'t' * 32}\n")
    assert Tokens(Path("credential:tokens")).client("t" * 32) is not None


def test_what_is_missing_is_named_with_the_line_of_the_unit(
    handed_over: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_node(written(tmp_path, NODE))
    for key, name in (("node.key", "node.key"), ("links.mqtt.password_file", "mqtt.password")):
        (problem,) = [one for one in error.value.problems if one.key == key]
        assert problem.message == f"systemd hands over no credential {name}"
        assert f"LoadCredential={name}:FILE" in (problem.suggestion or "")
    with pytest.raises(RoutingError, match="no credential token"):
        EngineUrl.parse("redis://h?password_file=credential:token").option("password")


def test_outside_of_the_unit_it_says_how_to_get_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="does not run in its unit"):
        load_node(written(tmp_path, NODE))
    config = load_node(written(tmp_path, NODE), full=False)  # enough for who only looks
    with pytest.raises(KeyFileError) as error:
        read_key(config.node.key_file)
    assert "systemd-run" in (error.value.hint or "")
    settings = MqttSettings(user="a", password_file=Path("credential:mqtt.password"))
    with pytest.raises(UsageError, match="handed over by systemd"):
        settings.read_password()


@pytest.mark.parametrize("name", ["", "..", ".", "../node.key", "a/b", "a b", "x" * 256])
def test_a_name_is_no_way_out_of_the_folder(handed_over: Path, name: str) -> None:
    hand_over(handed_over.parent, "node.key")
    with pytest.raises(KeyFileError, match="the name of a credential"):
        find(f"credential:{name}")


def test_other_files_are_held_to_their_modes(handed_over: Path, tmp_path: Path) -> None:
    loose = tmp_path / "password"
    loose.write_text("secret\n")
    loose.chmod(0o440)
    with pytest.raises(UsageError, match="can be read by others"):
        MqttSettings(user="a", password_file=loose).read_password()


def test_a_secret_of_an_engine_that_others_can_read_is_refused(tmp_path: Path) -> None:
    loose = tmp_path / "password"
    loose.write_text("secret\n")
    loose.chmod(0o640)
    url = EngineUrl.parse(f"redis://u@h?password_file={loose}")
    with pytest.raises(RoutingError, match="can be read by others") as error:
        url.option("password")
    assert error.value.hint == f"chmod 600 {loose}"
    assert "secret" not in str(error.value)
    loose.chmod(0o600)
    assert url.option("password") == "secret"
