"""``qis-gateway doctor``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

from gateway.cli.service import look_at_gateway
from gateway.cli.state import acceptor, opened_fleet
from gateway.config import GatewayConfig, load_gateway
from gateway.fleet import SCHEMA as FLEET
from gateway.routing import Context, open_engine
from gateway.spool import Spool, SpoolStatus
from gateway.spool_schema import SCHEMA as SPOOL
from qis_edge.cli.doctor import (
    NEARLY,
    Status,
    ask,
    clock,
    examine,
    links,
    pid_of,
    trouble,
    unit,
    whole,
)
from qis_edge.core.credential import GATEWAY
from qis_edge.core.errors import Refused, RoutingError, StoreError
from qis_edge.doctor.broker import Probe
from qis_edge.doctor.disk import check_disk
from qis_edge.doctor.findings import Finding, error, notice, ok, warning
from qis_edge.doctor.keys import check_credential, check_key, check_root_key, check_state
from qis_edge.doctor.machine import LIBRARIES, check_database, check_memory, check_versions
from qis_edge.keys import FleetFile, read_key
from qis_edge.link_config import LinksConfig
from qis_edge.terminal import plural, size

#: Seconds for an engine to open and to answer; packets that it may lack before it is told.
PATIENCE, BEHIND = 15.0, 1000
#: Engines in the state folder: one process has them open, so they are not opened here.
LOCAL = ("sqlite:", "memory:", "qdrant+edge:", "dht:")


def doctor(args: argparse.Namespace) -> int:
    """Look at everything that may be wrong, whether the gateway runs or not."""
    return examine(args, load_gateway, lambda config: config.gateway.state, _gateway)


def _gateway(args: argparse.Namespace, config: GatewayConfig) -> Iterator[Finding]:
    state = config.gateway.state
    status, found = ask(args, state)
    yield from found
    yield from clock(config, 0, status, gateway=True)
    yield from check_state(state)
    yield from check_key(config.gateway.key_file, state, what="gateway")
    yield from check_root_key(state)
    yield from whole("credential", lambda: [_standing(config)])
    spool = _spool(config)
    left = max(0, config.spool.budget - (spool.size if spool is not None else 0))
    yield from check_disk(state, wanted=left)
    yield from trouble(status)
    for name, schema in (("spool.db", SPOOL), ("fleet.db", FLEET)):
        yield from check_database(
            state / name, schema.version, schema.application_id, running=status is not None
        )
    yield from _backlog(config, spool)
    yield from whole("broker-settings", lambda: _links(config, status))
    yield from whole("engine", lambda: _engines(config, status, spool))
    yield from whole("service-outdated", lambda: unit(args, look_at_gateway))
    yield from check_versions((*LIBRARIES, *(["amqtt"] if config.broker.embedded else [])))
    yield from check_memory(pid_of(state) if status is not None else None)


def _standing(config: GatewayConfig) -> Finding:
    now = config.clock.make().now()
    kid = read_key(config.gateway.key_file).kid
    with opened_fleet(config, read_only=True) as fleet:
        held = fleet.credential(kid)
        try:
            fleet.resolve(kid, now, GATEWAY)
        except Refused:
            good = False
        else:
            good = True
    return check_credential(
        held.expires if held is not None else None,
        now,
        held=good,
        missing="qis-gateway init, where the root key is, makes one",
        renew="qis-gateway init --root FILE makes another",
    )


def _spool(config: GatewayConfig) -> SpoolStatus | None:
    path = config.gateway.state / "spool.db"
    if not path.exists():
        return None
    try:
        with contextlib.closing(Spool(path, budget=config.spool.budget, read_only=True)) as spool:
            return spool.status()
    except StoreError:  # the database's check says so
        return None


def _backlog(config: GatewayConfig, spool: SpoolStatus | None) -> Iterator[Finding]:
    if spool is None:
        yield ok("backlog", "nothing has come in yet")
        return
    ours = {open_engine(url).url for url in config.routing.engines}
    behind = max((one.behind for one in spool.engines if one.url in ours), default=0)
    if spool.size > NEARLY * config.spool.budget and behind:
        yield warning(
            "backlog-full",
            f"the spool has {size(spool.size)} of {size(config.spool.budget)}, and an engine "
            "lacks some of it: when it is full, nodes are told to wait",
            "mend the engine, or make spool.budget larger",
        )
    else:
        yield ok("backlog", f"{plural(spool.packets, 'packet')} in the spool, {size(spool.size)}")


def _links(config: GatewayConfig, status: Status | None) -> Iterator[Finding]:
    fleet = FleetFile.read(config.gateway.state / "fleet.toml")
    probe = Probe.gateway(fleet.site, read_key(config.gateway.key_file).kid)
    served: LinksConfig | None = config.served
    if config.broker.embedded and find_spec("amqtt") is None:
        yield error(
            "package-missing",
            "the embedded broker is not installed",
            "pip install 'qis-edge[gateway]', or run Mosquitto and set embedded = false",
            "mqtt",
        )
        return
    own = config.links.mqtt is None or config.links.mqtt.url is None
    if config.broker.embedded and own and status is None:
        yield notice("broker", "the embedded broker runs with the daemon: not tried", None, "mqtt")
        served = _without_mqtt(config.links)
    if served is not None:
        yield from links(served, config.broker_url, probe, status)


def _without_mqtt(config: LinksConfig) -> LinksConfig | None:
    """The other links, if there are any."""
    if config.serial is None and config.meshtastic is None:
        return None
    return LinksConfig(serial=config.serial, meshtastic=config.meshtastic, prefer=config.prefer)


# --- engines -----------------------------------------------------------------------------


def _engines(
    config: GatewayConfig, status: Status | None, spool: SpoolStatus | None
) -> Iterator[Finding]:
    """Each engine: as a running daemon finds it, or as it answers to us."""
    if status is not None:
        for one in status["engines"]:
            if one["ok"]:
                yield ok("engine", f"{one['url']} works", one["url"])
            else:
                yield _away(one["url"], str(one["detail"] or "it does not answer"))
            yield from _behind(one["url"], one["behind"] or 0)
        return
    behind = {} if spool is None else {one.url: one.behind for one in spool.engines}
    for given in config.routing.engines:
        url = open_engine(given).url  # without secrets
        if url.startswith(LOCAL):
            yield ok("engine", f"{url} is this machine's own", url)
        else:
            with opened_fleet(config, read_only=True) as fleet:
                context = Context(
                    accept=acceptor(config, fleet),
                    folder=config.gateway.state,
                    name=config.gateway.name.lower(),
                )
                yield asyncio.run(_try(given, context))
        yield from _behind(url, behind.get(url, 0))


async def _try(url: str, context: Context) -> Finding:
    engine = open_engine(url, context)
    try:
        async with asyncio.timeout(PATIENCE):
            await engine.open()
            found = await engine.status()
    except RoutingError as failure:
        return _away(engine.url, str(failure), failure.hint)
    except TimeoutError:
        return _away(engine.url, f"no answer within {PATIENCE:g} s")
    finally:
        with contextlib.suppress(RoutingError):
            await engine.close()
    if not found.ok:
        return _away(engine.url, found.detail or "it would take no deposit")
    return ok("engine", f"{engine.url} answers", engine.url)


def _away(url: str, why: str, fix: str | None = None) -> Finding:
    text = why if url in why else f"{url}: {why}"
    return error(
        "engine-away", text, fix or "mend it: the spool keeps what it lacks meanwhile", url
    )


def _behind(url: str, behind: int) -> Iterator[Finding]:
    if behind > BEHIND:
        yield warning(
            "engine-behind",
            f"{url} lacks {plural(behind, 'packet')} that are in the spool",
            "it gets them when it works: qis-gateway status",
            url,
        )
