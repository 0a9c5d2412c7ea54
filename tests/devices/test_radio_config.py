"""The parts of radio set-up that need no radio: the key, the file, the comparison."""

from __future__ import annotations

import base64
import itertools
import os
import re
from pathlib import Path
from typing import Any

import pytest

from devices.radio_config.channel_key import (
    WELL_KNOWN,
    ChannelKey,
    channel_hash,
    check_hash,
    draw,
    read,
    write,
)
from devices.radio_config.plan import (
    NEVER,
    SECTIONS,
    Snapshot,
    as_wanted,
    check,
    differences,
    to_write,
    wants,
)
from devices.radio_config.settings import RadioConfig, load_radio, radio_sample
from devices.radio_sim.settings import Settings
from qis_edge.core.errors import ConfigError, KeyFileError, LinkError, UsageError
from qis_edge.schema import Wrong, loads
from qis_edge.schema.text import headings, reference

ROOT = Path(__file__).parents[2]
KEY = ChannelKey(bytes(range(32)))
#: What every radio has as key number 1.
DEFAULT = bytes.fromhex("d4f1bb3a20290759f0bcffabcf4e6901")


def parse(text: str = "", folder: Path = Path("/nowhere")) -> RadioConfig:
    return loads(RadioConfig, text, folder / "radio.toml")


def snapshot(number: int = 7, **settings: Any) -> Snapshot:
    made = Settings(number, **settings)
    names = ("lora", "device", "position", "bluetooth")
    return Snapshot(
        number=number,
        firmware="2.7.26",
        reboots=0,
        name=made.owner.long_name,
        short_name=made.owner.short_name,
        licensed=False,
        managed=False,
        messages={
            **{name: getattr(made.configs[name], name) for name in names},
            "telemetry": made.modules["telemetry"].telemetry,
        },
        channels=list(made.channels),
    )


# The key.


@pytest.mark.parametrize(
    ("name", "expected"),
    [("LongFast", 0x08), ("MediumFast", 0x1F), ("ShortFast", 0x70), ("ShortSlow", 0x77),
     ("MediumSlow", 0x18), ("LongTurbo", 0x76), ("ShortTurbo", 0x0E), ("LongMod", 0x6E)],
)  # fmt: skip
def test_the_hash_is_the_firmwares(name: str, expected: int) -> None:
    assert channel_hash(name, DEFAULT) == expected
    assert expected in WELL_KNOWN
    assert channel_hash("qis", bytes(32)) == ord("q") ^ ord("i") ^ ord("s")


def test_names_and_keys_that_collide_are_refused_and_never_drawn() -> None:
    for code in range(256):
        key = ChannelKey(bytes([code, *bytes(31)]))
        if channel_hash("qis", key.raw) in WELL_KNOWN:
            with pytest.raises(UsageError, match=r"channel\.name"):
                check_hash("qis", key)
        else:
            check_hash("qis", key)
    first = bytes([0x08 ^ ord("q") ^ ord("i") ^ ord("s"), *bytes(31)])
    offered = itertools.chain([first, first], [bytes(range(32))])
    assert draw("qis", lambda _: next(offered)).is_key(bytes(range(32)))
    assert len({draw("qis").raw for _ in range(50)}) == 50


def test_a_key_is_never_shown() -> None:
    for shown in (repr(KEY), str(KEY), f"{KEY}"):
        assert shown == "ChannelKey(...)"
    assert KEY.is_key(bytes(range(32)))
    assert not KEY.is_key(bytes(16))
    with pytest.raises(UsageError, match="8 bytes"):
        ChannelKey(bytes(8))


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "radio.psk"
    before = os.umask(0o777)
    try:
        write(path, KEY, "qis")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path).is_key(KEY.raw)
    assert base64.b64encode(KEY.raw).decode() in path.read_text()
    with pytest.raises(KeyFileError, match="exists already"):
        write(path, KEY, "qis")
    short = tmp_path / "short.psk"
    short.touch(0o600)
    short.write_text(base64.b64encode(bytes(16)).decode())
    assert read(short).is_key(bytes(16))


@pytest.mark.parametrize(
    "text",
    ["", "# only\n", "secretsecret", "c2VjcmV0\n", "!" * 44, "=" * 44, "é" * 44,
     base64.b64encode(bytes(32)).decode() * 2, (base64.b64encode(bytes(32)).decode() + "\n") * 2],
)  # fmt: skip
def test_what_is_no_key_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "radio.psk"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError) as error:
        read(path)
    said = f"{error.value} {error.value.hint}"
    assert "is not a key file" in said
    assert not text.strip() or text.strip() not in said
    assert error.value.__cause__ is None


def test_a_key_file_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "radio.psk"
    with pytest.raises(KeyFileError, match="there is no key file"):
        read(path)
    with pytest.raises(KeyFileError, match="cannot be written"):
        write(tmp_path / "missing" / "radio.psk", KEY, "qis")
    write(path, KEY, "qis")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match=r"by others \(mode 0640\)") as error:
        read(path)
    assert error.value.hint == f"chmod 600 {path}"
    with pytest.raises(KeyFileError, match="is not a file"):
        read(tmp_path)
    path.chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(KeyFileError, match="runs as user 12345"):
            read(path)
    link = tmp_path / "loop"
    link.symlink_to(link)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read(link)


def test_a_disk_that_fails_leaves_no_half_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        write(tmp_path / "radio.psk", KEY, "qis")
    assert list(tmp_path.iterdir()) == []


# The file.


def test_the_sample_is_the_defaults(tmp_path: Path) -> None:
    made = parse(radio_sample(), tmp_path)
    assert made == parse("", tmp_path)
    assert made.channel.psk_file == tmp_path / "radio.psk"
    everything = re.sub(r"^#(?=[a-z\[])", "", radio_sample(), flags=re.MULTILINE)
    assert parse(everything).device.name == "North gate"
    for name in headings(RadioConfig):
        assert re.search(rf"^(\[{name}\]|#?{name.partition('.')[2]} = )", everything, re.MULTILINE)


def test_the_page_has_every_setting_as_it_is_declared() -> None:
    page = (ROOT / "docs/radio.md").read_text()
    assert reference(RadioConfig).strip() in page
    for want in wants(parse("[device]\nbluetooth = true"), KEY):
        assert f"`{want.setting}`" in page, want.setting


def test_a_relay_has_its_own_table() -> None:
    made = parse('[device]\nannounce = "1d"\nname = "x"\n[relay]\nrole = "ROUTER"').of_relay()
    assert (made.device.role, made.device.rebroadcast) == ("ROUTER", "ALL")
    assert (made.device.telemetry, made.device.announce) == (43200, 86400)
    assert made.named("North gate").device.name == "North gate"
    for name in ("", " x", "é" * 20):
        with pytest.raises(Wrong):
            made.named(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[lora]\nregion = "MARS"', "lora.region"),
        ('[lora]\npreset = "LONG_TURBO"', "is too wide for EU_868, radios would use LONG_FAST"),
        ("[lora]\nhop_limit = 8", "outside 0 to 7"),
        ('[channel]\nname = "twelve-bytes"', "has 12"),
        ('[channel]\nname = "Admin"', "means something else"),
        ('[channel]\nname = "a b"', "must be a name"),
        ("[channel]\nindex = 8", "outside 0 to 7"),
        ('[channel]\npsk = "AQ=="', "unknown key"),
        ('[device]\nrole = "REPEATER"', "device.role"),
        ('[device]\nrole = "ROUTER"\nrebroadcast = "NONE"', "a router passes frames on"),
        ('[relay]\nrebroadcast = "NONE"', "is not known"),
        ('[relay]\nrole = "CLIENT_MUTE"', "is not known"),
        ('[device]\ntelemetry = "1min"', "outside 30min to 7d"),
        ("[device]\ntelemetry = 5", "with its unit"),
        ('[device]\nshort_name = "ÄÖÜ"', "4 bytes at most, it has 6"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert message in str(error.value)
    assert "AQ==" not in str(error.value)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_radio(tmp_path / "radio.toml")
    assert "--sample" in str(error.value.hint)


# The comparison.

FULL = """
[lora]
region = "US"
preset = "SHORT_TURBO"
hop_limit = 5
slot = 20
tx_power = 14
[channel]
index = 1
[device]
role = "ROUTER"
rebroadcast = "LOCAL_ONLY"
telemetry = "1h"
bluetooth = false
name = "North gate"
short_name = "NG"
"""


def test_every_setting_is_seen_written_and_then_agrees() -> None:
    config = parse(FULL)
    radio = snapshot(region="UNSET")
    radio.messages["lora"].use_preset = False
    radio.messages["lora"].override_frequency = 433.5
    radio.messages["lora"].override_duty_cycle = True
    radio.messages["lora"].config_ok_to_mqtt = True
    radio.messages["lora"].tx_enabled = False
    radio.messages["position"].gps_mode = 1
    radio.channels[1].settings.uplink_enabled = True
    radio.channels[1].settings.downlink_enabled = True
    radio.channels[1].settings.module_settings.position_precision = 32
    wanted = wants(config, KEY)
    found = differences(wanted, radio)
    assert [one.setting for one in found] == [one.setting for one in wanted]
    assert to_write(found) == [*SECTIONS, "device"]
    made = as_wanted(wanted, radio)
    assert differences(wanted, made) == []
    assert made.channels[1].settings.psk == KEY.raw
    assert made.channels[0] == radio.channels[0]
    assert made.messages["telemetry"].device_telemetry_enabled
    assert differences(wanted, radio) == found  # the radio's own is left as it was
    shown = {one.setting: (one.wanted, one.has) for one in found}
    assert shown["lora.region"] == ("US", "UNSET")
    assert shown["lora.use_preset"] == (True, False)
    assert shown["lora.override_frequency"] == ("0", "433.5")
    assert shown["channel.role"] == ("SECONDARY", "DISABLED")
    assert shown["channel.psk"] == (None, None)
    assert shown["device.telemetry"] == ("1 h", "off")
    assert shown["position.gps_mode"] == ("DISABLED", "ENABLED")
    assert shown["device.name"] == ("North gate", "Emulated 0007")


def test_what_is_not_given_is_left_alone() -> None:
    settings = {one.setting for one in wants(parse("[device]\nposition = true"), KEY)}
    assert not {one for one in settings if one.startswith("position.")}
    assert not {"lora.slot", "lora.tx_power", "device.name", "device.bluetooth"} & settings


def test_only_what_differs_is_written_and_a_role_writes_more() -> None:
    wanted = wants(parse(), KEY)
    radio = as_wanted(wanted, snapshot())
    assert differences(wanted, radio) == []
    radio.messages["lora"].hop_limit = 7
    assert to_write(differences(wanted, radio)) == ["lora"]
    radio.messages["device"].role = 2
    again = to_write(differences(wanted, radio))
    assert again == ["lora", "device", "position", "telemetry", "device"]


def test_values_that_nobody_has_a_name_for() -> None:
    wanted = wants(parse(), KEY)
    radio = as_wanted(wanted, snapshot())
    radio.messages["lora"].modem_preset = 99
    radio.messages["telemetry"].device_update_interval = 2**32 - 1
    radio.messages["position"].gps_mode = 2  # not present is off too
    (found,) = differences(wanted, radio)
    assert (found.setting, found.has) == ("lora.preset", "99")
    assert radio.enum("lora", "modem_preset") == "99"
    radio.messages["telemetry"].device_update_interval = 0
    assert differences(wanted, radio)[-1].has == "the firmware's default"
    assert NEVER < 2**31


def test_secrets_are_not_in_what_can_be_printed() -> None:
    wanted = wants(parse(), KEY)
    radio = as_wanted(wanted, snapshot())
    for shown in (repr(radio), repr(wanted), repr(differences(wanted, snapshot()))):
        assert repr(KEY.raw)[2:20] not in shown
        assert KEY.raw.hex() not in shown


def test_radios_that_cannot_be_set_up() -> None:
    config = parse("[channel]\nindex = 3")
    radio = snapshot()
    check(radio, config)
    radio.managed = True
    with pytest.raises(LinkError, match="is managed"):
        check(radio, config)
    radio.managed, radio.licensed = False, True
    with pytest.raises(LinkError, match="must not encrypt"):
        check(radio, config)
    radio.licensed = False
    del radio.channels[3:]
    with pytest.raises(LinkError, match="there is no 3"):
        check(radio, config)


def test_definitions_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse()
    object.__setattr__(config.lora, "region", "MARS")
    with pytest.raises(LinkError, match="too old: it knows no") as error:
        wants(config, KEY)
    assert error.value.hint == "pip install --upgrade meshtastic"
