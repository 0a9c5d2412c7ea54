"""``qis-edge radio configure`` and ``qis-edge radio list``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from devices.radio_config import channel_key
from devices.radio_config.channel_key import ChannelKey
from devices.radio_config.configure import Done, configure, look
from devices.radio_config.library import Timing
from devices.radio_config.plan import Difference, Shown, Snapshot
from devices.radio_config.settings import RadioConfig, load_radio, radio_sample
from qis_edge.cli.program import OK, PROBLEM, complain, note, print_json
from qis_edge.core.errors import LinkError, UsageError
from qis_edge.links.meshtastic_stream import definitions
from qis_edge.links.meshtastic_wire import find_radios
from qis_edge.schema import Wrong
from qis_edge.terminal import harmless, plural

TIMING = Timing()
#: Seconds that each port of a list gets; it may be something else than a radio.
LISTED = 15.0


def run(args: argparse.Namespace) -> int:
    """``radio configure``.

    :raises ConfigError: the file is wrong. :raises KeyFileError: the key file is.
    :raises UsageError: name and key do not go together, or an argument is wrong.
    :raises LinkError: the radio cannot be reached, refuses, or does not come back.
    """
    if args.sample:
        sys.stdout.write(radio_sample())
        return OK
    config = _wanted(args)
    if args.new_key:
        return _new_key(args, config)
    definitions()  # says what to install, where it is missing, before a key is drawn
    key = _key(config, dry_run=args.dry_run)
    done = configure(
        args.radio,
        config,
        key,
        dry_run=args.dry_run,
        timing=TIMING,
        say=_silence if args.json else _progress(),
    )
    if args.json:
        print_json(_form(done, dry_run=args.dry_run))
    else:
        _conclude(args, done)
    return OK if done.agrees else PROBLEM


def show(args: argparse.Namespace) -> int:
    """``radio list``.

    :raises LinkError: the library is missing.
    """
    definitions()
    places = find_radios() if args.radio == "auto" else [args.radio]
    found = [_look(place) for place in places]
    if args.json:
        print_json({"radios": found})
    elif not found:
        note("no radio is plugged in")
    else:
        for one in found:
            _show(one)
    return PROBLEM if any(one["error"] for one in found) else OK


def _wanted(args: argparse.Namespace) -> RadioConfig:
    config = load_radio(args.file)
    if args.relay:
        config = config.of_relay()
    if args.name is not None:
        try:
            config = config.named(args.name)
        except Wrong as wrong:
            raise UsageError(wrong.message, field="--name", hint=wrong.suggestion) from None
    return config


def _new_key(args: argparse.Namespace, config: RadioConfig) -> int:
    path, name = config.channel.psk_file, config.channel.name
    channel_key.write(path, channel_key.draw(name), name)
    if args.json:
        print_json({"psk_file": str(path)})
    else:
        print(f"drew a key for the channel {name}: {harmless(path)}")
    return OK


def _key(config: RadioConfig, *, dry_run: bool) -> ChannelKey:
    path, name = config.channel.psk_file, config.channel.name
    if path.exists() or path.is_symlink():
        key = channel_key.read(path)
        channel_key.check_hash(name, key)
        return key
    key = channel_key.draw(name)
    if dry_run:
        note(f"there is no {path} yet: a key would be drawn into it")
    else:
        channel_key.write(path, key, name)
        note(f"drew a key for the channel {name} into {path}; copy it beside the file wherever")
        note("other radios of this channel are set up, and let nobody else have it")
    return key


def _silence(_what: str, _done: Done) -> None:
    pass


def _progress() -> Callable[[str, Done], None]:
    out = sys.stdout  # the library's own words go elsewhere meanwhile

    def say(what: str, done: Done) -> None:
        if what == "found":
            print(harmless(_title(done)), file=out)
            for one in done.changes:
                print(f"  {harmless(_change(one))}", file=out)
        elif what == "writing":
            again = " what is still missing" if done.written else ""
            print(f"writing{again} ...", file=out)
        elif what == "interrupted":
            print("interrupted: the radio keeps what was written, run it again", file=out)
        else:
            print("waiting until it has restarted ...", file=out)
        out.flush()

    return say


def _title(done: Done) -> str:
    radio = done.before
    return f"radio {radio.address} {radio.name}, firmware {radio.firmware}, at {done.address}"


def _change(one: Difference) -> str:
    if one.secret:
        return f"{one.setting}: differs"
    return f"{one.setting}: {_value(one.has)} -> {_value(one.wanted)}"


def _value(value: Shown) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if value != "" else '""'


def _conclude(args: argparse.Namespace, done: Done) -> None:
    if done.after.number != done.before.number:
        note(f"its number is {done.after.address} now")
    if done.agrees:
        kept = "as it is to be" if done.written else "as it is to be already, nothing was written"
        print(f"ok: the radio is {kept}")
    elif args.dry_run:
        print(f"{plural(len(done.left), 'setting')} would change")
    else:
        for one in done.left:
            if one.secret:
                complain(f"{one.setting}: differs")
            else:
                complain(f"{one.setting}: wanted {_value(one.wanted)}, radio has {_value(one.has)}")
        complain(
            "the radio does not take all that was written to it",
            "run it again; if it stays so, the firmware does not allow it: take that out of "
            f"{args.file} or update the firmware",
        )


def _form(done: Done, *, dry_run: bool) -> dict[str, Any]:
    radio = done.after
    return {
        "radio": done.address,
        "number": radio.address,
        "name": radio.name,
        "firmware": radio.firmware,
        "agrees": done.agrees,
        "written": done.written,
        "dry_run": dry_run,
        "changes": [
            {"setting": one.setting, "was": one.has, "wanted": one.wanted} for one in done.changes
        ],
        "differences": [
            {"setting": one.setting, "wanted": one.wanted, "has": one.has} for one in done.left
        ],
    }


def _look(place: str) -> dict[str, Any]:
    form: dict[str, Any] = dict.fromkeys(
        ("radio", "number", "name", "firmware", "region", "preset", "role", "channels", "error")
    )
    form["radio"] = place
    try:
        radio = look(place, dataclasses.replace(TIMING, connect=min(TIMING.connect, LISTED)))
    except LinkError as error:
        form["error"] = str(error)
        form["fix"] = error.hint
        return form
    return {**form, "fix": None, **_described(radio)}


def _described(radio: Snapshot) -> dict[str, Any]:
    disabled = 0
    return {
        "number": radio.address,
        "name": radio.name,
        "firmware": radio.firmware,
        "region": radio.enum("lora", "region"),
        "preset": radio.enum("lora", "modem_preset"),
        "role": radio.enum("device", "role"),
        "channels": [
            {"index": index, "name": str(one.settings.name)}
            for index, one in enumerate(radio.channels)
            if one.role != disabled
        ],
    }


def _show(one: dict[str, Any]) -> None:
    place = one["radio"]
    if one["error"]:
        complain(one["error"] if place in one["error"] else f"{place}: {one['error']}", one["fix"])
        return
    channels = ", ".join(
        f"{each['index']} {harmless(each['name']) or '(public)'}" for each in one["channels"]
    )
    print(f"{one['number']} {harmless(one['name'])}, firmware {harmless(one['firmware'])}")
    print(f"  at {harmless(place)}")
    print(f"  {one['region']}, {one['preset']}, {one['role']}, channels: {channels}")
