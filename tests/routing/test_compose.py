"""docs/routing/docker-compose.yml, which no test can run: held to the Compose specification, to
itself, and to what the engines make of its URLs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from gateway.routing import open_engine
from gateway.routing.url import EngineUrl

FILE = Path(__file__).parents[2] / "docs" / "routing" / "docker-compose.yml"
TEXT = FILE.read_text()
Services = dict[str, dict[str, Any]]


def whole() -> dict[str, Any]:
    """With what is merged in it, as Compose resolves it."""
    found: dict[str, Any] = yaml.safe_load(TEXT)
    return found


def services() -> Services:
    found: Services = whole()["services"]
    return found


def parsed(found: dict[str, Any]) -> PyCompose:
    return PyCompose.from_json(json.dumps(found))


def published() -> list[tuple[str, str]]:
    """(service, "address:port of the host:port within") of each port."""
    return [(name, port) for name, one in services().items() for port in one["ports"]]


def test_it_is_as_the_specification_has_it() -> None:
    assert len(parsed(whole())) == len(services()) == 11


def _key(found: Services) -> None:
    found["redis"]["comand"] = found["redis"].pop("command")


def _port(found: Services) -> None:
    found["redis"]["ports"] = ["127.0.0.1:redis:6379"]


def _restart(found: Services) -> None:
    found["redis"]["restart"] = "sometimes"


@pytest.mark.parametrize("spoil", [_key, _port, _restart])
def test_what_is_not_in_the_specification_would_be_seen(spoil: Callable[[Services], None]) -> None:
    found = whole()
    spoil(found["services"])
    with pytest.raises(ValueError, match=r"comand|port|restart|integer|variant|digit"):
        parsed(found)


def test_what_is_named_is_there() -> None:
    found = whole()
    volumes = {volume.partition(":")[0] for one in services().values() for volume in one["volumes"]}
    assert volumes == set(found["volumes"])
    configs = {c["source"] for one in services().values() for c in one.get("configs", ())}
    assert configs == set(found["configs"])
    for one in services().values():
        assert set(one.get("depends_on", ())) <= set(services())


def test_nothing_listens_to_the_network_and_no_port_is_taken_twice() -> None:
    places = [port.rpartition(":")[0] for _, port in published()]
    assert all(place.startswith("127.0.0.1:") for place in places)
    assert len(set(places)) == len(places)


def test_every_engine_finds_its_servers() -> None:
    urls = re.findall(r'engines = \["([^"]+)"\]', TEXT)
    assert {url.partition(":")[0] for url in urls} == {"kafka", "qdrant", "nats", "redis", "mqtt"}
    there = {port.rpartition(":")[0]: name for name, port in published()}
    named: set[str] = set()
    for url in urls:
        open_engine(url)
        for host, port in EngineUrl.parse(url).hosts:
            named.add(there[f"{host}:{port}"])
    assert named == set(services()) - {"qdrant-2", "qdrant-3"}  # one of the nodes does


def test_kafka_s_brokers_know_each_other() -> None:
    brokers = {name: one for name, one in services().items() if name.startswith("kafka")}
    voters = ",".join(
        f"{one['environment']['KAFKA_NODE_ID']}@{name}:9093" for name, one in brokers.items()
    )
    for name, one in brokers.items():
        settings = one["environment"]
        assert settings["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        outside = one["ports"][0].rpartition(":")[0]
        assert settings["KAFKA_ADVERTISED_LISTENERS"] == (
            f"INSIDE://{name}:9094,OUTSIDE://{outside}"
        )


def test_servers_that_are_three_are_told_of_the_other_two() -> None:
    for name, one in services().items():
        kind, _, number = name.partition("-")
        said = " ".join(one.get("command", ()))
        if kind == "nats":
            assert f"--server_name={name} --client_advertise={one['ports'][0][:14]} " in said
            others = [f"nats://nats-{n}:6222" for n in "123" if n != number]
            assert said.endswith(f"--routes={','.join(others)}")
        if kind == "qdrant":
            assert f"--uri http://{name}:6335" in said
            assert ("--bootstrap http://qdrant-1:6335" in said) == (number != "1")
