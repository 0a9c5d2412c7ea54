"""What ``qis-edge radio ping`` shows: lines for people, or objects for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from qis_edge.cli.program import complain, note
from qis_edge.core.airtime import HOUR
from qis_edge.core.mesh.framing import Signal
from qis_edge.core.mesh.survey import Reached, Reply, Spread, Summary, Verdict, Way
from qis_edge.links.meshtastic_ping import (
    Answerer,
    Away,
    Back,
    Event,
    Pinged,
    Pinger,
    Silence,
    Voice,
    Waiting,
)
from qis_edge.terminal import duration, harmless, plural, table

#: From so many pings on a verdict stands.
ENOUGH = 20
#: So many in a row without any answer, and it is said what to look at.
PUZZLING = 3

NOBODY = (
    "nobody answers: has the other side the same region, preset, channel and key "
    "(qis-edge radio list)? Does a gateway run there, or qis-edge radio ping --answer? "
    "Its screen shows whether it hears this radio"
)


class Show(Protocol):
    """Tells what happens."""

    def begin(self, voice: Voice, pinger: Pinger) -> None:
        """Pings begin."""

    def begin_answering(self, voice: Voice) -> None:
        """Answering begins."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def end(self, summary: Summary) -> None:
        """What came of the pings."""

    def end_answering(self, answerer: Answerer) -> None:
        """What came of answering."""


def name_of(radio: int) -> str:
    """A radio's number as Meshtastic writes it."""
    return f"!{radio:08x}"


class TextShow:
    """Lines on a terminal."""

    def __init__(self) -> None:
        self._preset = self._law = ""
        self._silent: int | None = 0  # in a row since the start, if nobody ever answered

    def begin(self, voice: Voice, pinger: Pinger) -> None:
        """A line about it all, and the table's head."""
        self._preset = voice.preset.name
        if voice.region.duty_cycle < 1:
            hourly = duration(voice.region.duty_cycle * HOUR)
            self._law = f"; {harmless(voice.region.name)} allows {hourly} in an hour"
        _say(
            f"{_radio(voice)}: a ping of {pinger.size} bytes every "
            f"{duration(round(pinger.interval, 1))}, {duration(voice.seconds(pinger.size))} on "
            "the air each; Ctrl-C ends it"
        )
        _say(_row("ping", "answered by", "after", "heard there", "heard here", "relays"))

    def begin_answering(self, voice: Voice) -> None:
        """A line about it all, and the table's head."""
        _say(f"{_radio(voice)}: answers pings; Ctrl-C ends it")
        _say(_row("", "ping of", "bytes", "", "heard here", "relays"))

    def event(self, event: Event) -> None:
        """One line each."""
        match event:
            case Reply():
                self._silent = None
                _say(_reply(event))
            case Silence(number):
                _say(_row(number, "nobody"))
                if self._silent is not None:
                    self._silent += 1
                    if self._silent == PUZZLING:
                        note(NOBODY)
            case Pinged(radio, heard, size, answered):
                relays = _hops(heard.hops)
                line = _row("", name_of(radio), size, "", _signal(heard), relays)
                _say(line if answered else f"{line}  not answered: too often")
            case Waiting(seconds, why):
                _say(f"waiting {duration(round(seconds, 1))}: {why}")
            case Away(cause):
                _say(f"the radio is away, {harmless(cause)}; it is waited for")
            case Back():
                _say("the radio is back")

    def end(self, summary: Summary) -> None:
        """Figures by radio, and a verdict."""
        _say(
            f"\n{plural(summary.sent, 'ping')}, {summary.answered} of {summary.counted} answered"
            f"{f' ({summary.delivery:.0%})' if summary.counted else ''}, "
            f"{duration(summary.airtime_ms / 1000)} of airtime{self._law}"
        )
        if summary.verdict is None:
            if summary.counted:
                complain("nobody answered", NOBODY.partition(": ")[2])
            return
        _say("\n" + _radios(summary.reached))
        for one in summary.reached:
            for line in _remarks(one):
                _say(line)
        _say("\n" + _verdict(summary, self._preset))

    def end_answering(self, answerer: Answerer) -> None:
        """Figures by radio."""
        _say(
            f"\n{plural(answerer.pings, 'ping')} heard, {answerer.answered} answered, "
            f"{duration(answerer.airtime_ms / 1000)} of airtime"
        )
        if answerer.heard:
            rows = [
                [name_of(radio), len(one.snr), *_spreads(one.way()), one.hops]
                for radio, one in answerer.heard.items()
            ]
            _say("\n" + table(["radio", "pings", "SNR here", "RSSI here", "relays"], rows))


def _say(line: str) -> None:
    print(line, flush=True)


def _radio(voice: Voice) -> str:
    radio = voice.client.radio
    assert radio is not None  # a voice has one
    return (
        f"{name_of(radio.number)} {harmless(radio.name, limit=40)}, {voice.preset.name} in "
        f"{harmless(voice.region.name)}"
    )


def _row(*cells: object) -> str:
    """The cells of one line, as wide as usual."""
    widths = (5, 11, 7, 19, 19, 6)
    texts = [
        str(cell).rjust(width) if index in (0, 2) else str(cell).ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=False))
    ]
    return "  ".join(texts).rstrip()


def _reply(reply: Reply) -> str:
    hops = [signal.hops if signal is not None else None for signal in (reply.there, reply.back)]
    relays = _hops(hops[0]) if hops[0] == hops[1] else "/".join(map(_hops, hops))
    line = _row(
        reply.number,
        name_of(reply.radio),
        f"{reply.seconds:.2f} s",
        _signal(reply.there),
        _signal(reply.back),
        relays,
    )
    return f"{line}  late" if reply.late else line


def _signal(signal: Signal | None) -> str:
    return "?" if signal is None else f"{signal.snr:6.2f} dB {signal.rssi:5d} dBm"


def _hops(hops: int | None) -> str:
    return "?" if hops is None else str(hops)


def _radios(reached: Sequence[Reached]) -> str:
    headers = ["radio", "answered", "round trip, s", "SNR there", "RSSI there"]
    headers += ["SNR here", "RSSI here", "verdict"]
    rows = [
        [
            name_of(one.radio),
            f"{one.answered} ({one.delivery:.0%})",
            "{:.2f}/{:.2f}/{:.2f}".format(*one.seconds),
            *_spreads(one.there),
            *_spreads(one.back),
            one.verdict.label,
        ]
        for one in reached
    ]
    figures = (
        "round trip: least/mean/most; SNR in dB and RSSI in dBm: a tenth below/half/a tenth above"
    )
    return f"{table(headers, rows)}\n{figures}"


def _spreads(way: Way) -> list[str | None]:
    return [_spread(way.snr, 1), _spread(way.rssi, 0)]


def _spread(spread: Spread | None, digits: int) -> str | None:
    if spread is None:
        return None
    return "/".join(f"{one:.{digits}f}" for one in (spread.low, spread.middle, spread.high))


def _remarks(one: Reached) -> list[str]:
    lines = []
    if one.relayed:
        lines.append(
            f"{name_of(one.radio)} was reached over relays: signals are those of the last relay"
        )
    if (by := one.lopsided) is not None:
        worse, better = ("there", "here") if by < 0 else ("here", "there")
        lines.append(
            f"{name_of(one.radio)}: what is heard {worse} is {abs(by):.0f} dB weaker than "
            f"{better}: noise or a bad antenna {worse}, or less power {better}"
        )
    return lines


def _verdict(summary: Summary, preset: str) -> str:
    """What the place is good for, and why."""
    assert summary.verdict is not None  # somebody answered
    margin = summary.reached[0].margin
    hand = "" if margin is None else f", {_in_hand(margin, summary.limit, preset)}"
    scale = ", ".join(
        f"{one.label} from {one.delivery:.0%} and {one.margin:.0f} dB on"
        for one in (Verdict.GOOD, Verdict.FAIR)
    )
    scale += f", {Verdict.POOR.label} from {Verdict.POOR.delivery:.0%} on"
    lines = [
        f"this place is {summary.verdict.label}: {summary.delivery:.0%} answered{hand}",
        f"({scale}; rain, leaves and people take a few dB)",
    ]
    if _strong(summary):
        lines.append(
            "signals are strong and yet pings are lost: others may be sending, or it is too loud"
        )
    if summary.counted < ENOUGH:
        lines.append(f"{ENOUGH} pings or more would say more than {summary.counted}")
    return "\n".join(lines)


def _strong(summary: Summary) -> bool:
    """Whether pings are lost, and not for want of signal."""
    margin = summary.reached[0].margin
    lossy = summary.delivery < Verdict.FAIR.delivery
    return lossy and margin is not None and margin >= Verdict.GOOD.margin


def _in_hand(margin: float, limit: float, preset: str) -> str:
    return (
        f"9 frames of 10 were {margin:.1f} dB or more above what {preset} needs "
        f"({limit:.1f} dB of SNR)"
    )


class JsonShow:
    """One object a line: what ``event`` says, then its figures."""

    def begin(self, voice: Voice, pinger: Pinger) -> None:
        """``begin``."""
        self._write(
            "begin",
            **_about(voice),
            size=pinger.size,
            interval=round(pinger.interval, 3),
            airtime_ms=round(voice.airtime_ms(pinger.size), 1),
        )

    def begin_answering(self, voice: Voice) -> None:
        """``begin``, without pings' size."""
        self._write("begin", **_about(voice), size=None, interval=None, airtime_ms=None)

    def event(self, event: Event) -> None:
        """``reply``, ``silence``, ``ping``, ``waiting``, ``away`` or ``back``."""
        match event:
            case Reply():
                self._write(
                    "reply",
                    number=event.number,
                    radio=name_of(event.radio),
                    seconds=round(event.seconds, 3),
                    there=_signal_form(event.there),
                    here=_signal_form(event.back),
                    late=event.late,
                )
            case Silence(number):
                self._write("silence", number=number)
            case Pinged(radio, heard, size, answered):
                self._write(
                    "ping",
                    radio=name_of(radio),
                    size=size,
                    here=_signal_form(heard),
                    answered=answered,
                )
            case Waiting(seconds, why):
                self._write("waiting", seconds=round(seconds, 1), why=why)
            case Away(cause):
                self._write("away", why=cause)
            case Back():
                self._write("back")

    def end(self, summary: Summary) -> None:
        """``summary``."""
        self._write(
            "summary",
            sent=summary.sent,
            counted=summary.counted,
            answered=summary.answered,
            delivery=round(summary.delivery, 4),
            airtime_ms=round(summary.airtime_ms),
            limit=summary.limit,
            verdict=_label(summary.verdict),
            radios=[
                {
                    "radio": name_of(one.radio),
                    "answered": one.answered,
                    "delivery": round(one.delivery, 4),
                    "seconds": [round(part, 3) for part in one.seconds],
                    "there": _way_form(one.there),
                    "here": _way_form(one.back),
                    "margin": None if one.margin is None else round(one.margin, 2),
                    "verdict": _label(one.verdict),
                }
                for one in summary.reached
            ],
        )

    def end_answering(self, answerer: Answerer) -> None:
        """``summary``, of the other end."""
        self._write(
            "summary",
            pings=answerer.pings,
            answered=answerer.answered,
            airtime_ms=round(answerer.airtime_ms),
            radios=[
                {"radio": name_of(radio), "here": _way_form(one.way())}
                for radio, one in answerer.heard.items()
            ],
        )

    def _write(self, event: str, **figures: Any) -> None:
        print(json.dumps({"event": event, **figures}), flush=True)


def _about(voice: Voice) -> dict[str, Any]:
    radio = voice.client.radio
    assert radio is not None  # a voice has one
    return {
        "radio": name_of(radio.number),
        "name": radio.name,
        "region": voice.region.name,
        "preset": voice.preset.name,
        "duty_cycle": voice.region.duty_cycle,
    }


def _label(verdict: Verdict | None) -> str | None:
    return None if verdict is None else verdict.label


def _signal_form(signal: Signal | None) -> dict[str, Any] | None:
    if signal is None:
        return None
    return {"snr": signal.snr, "rssi": signal.rssi, "hops": signal.hops}


def _way_form(way: Way) -> dict[str, Any]:
    return {"snr": _spread_form(way.snr), "rssi": _spread_form(way.rssi), "hops": way.hops}


def _spread_form(spread: Spread | None) -> list[float] | None:
    if spread is None:
        return None
    return [round(one, 2) for one in (spread.low, spread.middle, spread.high)]
