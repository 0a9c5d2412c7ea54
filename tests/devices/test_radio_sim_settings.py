"""The emulated radio's admin messages: what a host sets, and what the firmware makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from devices.radio_sim.channel import Channel
from devices.radio_sim.radio import Radio
from devices.radio_sim.settings import DAY, NEVER, Settings
from qis_edge.links.meshtastic_stream import definitions
from tests.devices.radios import Host


def make(**settings: Any) -> tuple[Radio, Host]:
    radio = Radio(Channel("SHORT_FAST"), Settings(7, **settings))
    return radio, Host(radio)


def admin(host: Host, **part: Any) -> None:
    message = definitions("admin_pb2").AdminMessage(**part)
    host.send(message.SerializeToString(), to=host.radio.number, port=6)


def section(name: str, **values: Any) -> Any:
    config = definitions("config_pb2").Config()
    part = getattr(config, name)
    part.SetInParent()
    for key, value in values.items():
        setattr(part, key, value)
    return config


def test_a_transaction_is_kept_when_it_is_committed() -> None:
    radio, host = make()
    admin(host, begin_edit_settings=True)
    admin(host, set_config=section("lora", region=3, hop_limit=5))
    radio.channel.simulation.run(20)
    assert (radio.settings.reboots, radio.settings.lora.hop_limit) == (0, 5)
    admin(host, commit_edit_settings=True)
    radio.channel.simulation.run(20)
    assert (radio.settings.reboots, radio.settings.lora.hop_limit) == (1, 5)
    radio.reboot()
    radio.channel.simulation.run(20)
    assert radio.settings.lora.hop_limit == 5


def test_a_transaction_that_nobody_commits_is_lost_with_the_power() -> None:
    radio, host = make()
    admin(host, begin_edit_settings=True)
    admin(host, set_config=section("lora", region=1, hop_limit=5))
    admin(host, set_owner=definitions("mesh_pb2").User(long_name="Hill", is_unmessagable=True))
    assert (radio.settings.region, radio.settings.owner.long_name) == ("US", "Hill")
    assert radio.settings.owner.is_unmessagable
    radio.power_off()
    radio.power_on()
    assert (radio.settings.region, radio.settings.lora.hop_limit) == ("EU_868", 3)
    assert radio.settings.owner.long_name == "Emulated 0007"


def test_what_is_set_outside_a_transaction_reboots_it() -> None:
    radio, host = make()
    admin(host, set_config=section("lora", region=3, hop_limit=2))
    radio.channel.simulation.run(20)
    assert (radio.settings.reboots, radio.settings.lora.hop_limit) == (1, 2)


def test_a_first_region_lets_it_send() -> None:
    radio, host = make(region="UNSET")
    admin(host, set_config=section("lora", region=3, tx_enabled=False))
    assert radio.settings.lora.tx_enabled
    assert radio.settings.lora.ignore_mqtt
    admin(host, set_config=section("lora", region=0, tx_enabled=True))
    assert not radio.settings.lora.tx_enabled
    radio, host = make(region="UNSET")
    admin(host, set_config=section("lora", region=1))
    assert (radio.settings.lora.tx_enabled, radio.settings.lora.ignore_mqtt) == (True, False)


@pytest.mark.parametrize(
    ("role", "mode", "interval", "kept"),
    [
        ("ROUTER", "CORE_PORTNUMS_ONLY", DAY // 2, "ROUTER"),
        ("ROUTER_LATE", "ALL", DAY, "ROUTER_LATE"),
        ("CLIENT_MUTE", "NONE", NEVER, "CLIENT_MUTE"),
        ("REPEATER", "NONE", NEVER, "CLIENT"),
    ],
)
def test_a_role_brings_its_defaults(role: str, mode: str, interval: int, kept: str) -> None:
    radio, host = make()
    device = radio.settings.device
    roles, modes = type(device).Role, type(device).RebroadcastMode
    part = section("device", role=roles.Value(role), rebroadcast_mode=modes.Value("NONE"))
    admin(host, set_config=part)
    assert roles.Name(device.role) == kept
    assert modes.Name(device.rebroadcast_mode) == mode
    assert device.node_info_broadcast_secs == 3600
    telemetry = radio.settings.modules["telemetry"].telemetry
    assert telemetry.device_update_interval == interval
    # A second time it is the same role: what is set now stays.
    part = section("device", role=device.role, rebroadcast_mode=modes.Value("LOCAL_ONLY"))
    admin(host, set_config=part)
    assert modes.Name(device.rebroadcast_mode) == "LOCAL_ONLY"


def test_a_managed_radio_ignores_its_host() -> None:
    radio, host = make()
    radio.settings.configs["security"].security.is_managed = True
    admin(host, set_config=section("lora", region=1))
    admin(host, get_owner_request=True)
    assert radio.settings.region == "EU_868"
    assert not [one for one in host.read() if one.packet.decoded.portnum == 6]


@pytest.mark.parametrize("ignored", ["lora", "telemetry", "channel", "owner"])
def test_a_firmware_that_ignores_a_section(ignored: str) -> None:
    radio, host = make()
    radio.settings.ignores.add(ignored)
    before = [one.SerializeToString() for one in radio.settings.channels]
    module = definitions("module_config_pb2").ModuleConfig()
    module.telemetry.device_update_interval = 1
    admin(host, set_config=section("lora", hop_limit=6))
    admin(host, set_module_config=module)
    admin(host, set_channel=definitions("channel_pb2").Channel(index=2, role=2))
    admin(host, set_owner=definitions("mesh_pb2").User(long_name="Hill"))
    taken = {
        "lora": radio.settings.lora.hop_limit == 6,
        "telemetry": radio.settings.modules["telemetry"].telemetry.device_update_interval == 1,
        "channel": before != [one.SerializeToString() for one in radio.settings.channels],
        "owner": radio.settings.owner.long_name == "Hill",
    }
    assert [name for name, was in taken.items() if not was] == [ignored]
