"""Airtime: what a frame costs on a LoRa channel, and how much of it may be spent.

Time on air by the formula of Semtech's SX126x data sheet (section 6.1.4), with what
Meshtastic sets: preamble of 16 symbols, CRC, explicit header, low-data-rate optimisation
from symbols of 16 ms on. All durations are milliseconds of air; ``now`` is monotonic
seconds and always an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qis_edge.core.checks import require

PREAMBLE_SYMBOLS = 16
#: LoRa's explicit header and CRC, bits.
_HEADER_BITS, _CRC_BITS = 20, 16
#: From symbols of so many milliseconds on, the low-data-rate optimisation is on.
_SLOW_SYMBOL_MS = 16.0

#: The radio's own header: to, from, id, flags, channel, next hop, relay.
RADIO_HEADER = 16
#: What the radio can put on air at most.
MAX_ON_AIR = 255
#: Most bytes of ours in a broadcast on an application's port: 24 are the radio's.
MAX_PAYLOAD = 231
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Preset:
    """Modem settings.

    :param spreading: spreading factor, 7..12.
    :param bandwidth: Hz.
    :param coding: the denominator of the coding rate 4/x, 5..8.
    """

    name: str
    spreading: int
    bandwidth: int
    coding: int

    @property
    def symbol_ms(self) -> float:
        """Milliseconds of one symbol."""
        return 1000.0 * (1 << self.spreading) / self.bandwidth

    @property
    def snr_limit(self) -> float:
        """The SNR in dB down to which frames are understood: -7.5 at SF7 to -20 at SF12
        (Semtech SX1276 data sheet, table 13; SX1261/2 data sheet, section 6.1.1.1)."""
        return -7.5 - 2.5 * (self.spreading - 7)


def _presets() -> Mapping[str, Preset]:
    table = (
        ("SHORT_TURBO", 7, 500_000, 5),
        ("SHORT_FAST", 7, 250_000, 5),
        ("SHORT_SLOW", 8, 250_000, 5),
        ("MEDIUM_FAST", 9, 250_000, 5),
        ("MEDIUM_SLOW", 10, 250_000, 5),
        ("LONG_TURBO", 11, 500_000, 8),
        ("LONG_FAST", 11, 250_000, 5),
        ("LONG_MODERATE", 11, 125_000, 8),
        ("LONG_SLOW", 12, 125_000, 8),
    )
    return MappingProxyType({row[0]: Preset(*row) for row in table})


#: By the names that Meshtastic gives them.
PRESETS = _presets()


@dataclass(frozen=True, slots=True)
class Region:
    """What the law of a place allows.

    :param duty_cycle: the share of each hour that one radio may send, 0..1.
    :param widest: Hz; presets that are wider fall back to LONG_FAST.
    """

    name: str
    duty_cycle: float = 1.0
    widest: int = 500_000


#: By the names that Meshtastic gives them. Source: the table of regions in the firmware's
#: ``src/mesh/RadioInterface.cpp`` (the lines ``RDEF``: bands, duty cycles, and presets that
#: are wider than the band), as of the development of 2.8, where Thailand has 10%, as its law
#: does; 2.7 lets it send without end. Left out are those with presets of their own:
#: ``LORA_24``, ``EU_866``, ``EU_N_868``.
REGIONS: Mapping[str, Region] = MappingProxyType(
    {
        region.name: region
        for region in (
            Region("US"),
            Region("EU_433", 0.10),
            Region("EU_868", 0.10, 250_000),
            Region("CN"),
            Region("JP"),
            Region("ANZ"),
            Region("ANZ_433"),
            Region("RU"),
            Region("KR"),
            Region("TW"),
            Region("IN"),
            Region("NZ_865"),
            Region("TH", 0.10),
            Region("UA_433", 0.10),
            Region("UA_868", 0.01),
            Region("MY_433"),
            Region("MY_919"),
            Region("SG_923"),
            Region("PH_433"),
            Region("PH_868"),
            Region("PH_915"),
            Region("KZ_433"),
            Region("KZ_863"),
            Region("NP_865"),
            Region("BR_902"),
        )
    }
)


def region_named(name: str) -> Region:
    """The region that a radio tells; one that we do not know is taken for as strict as the
    strictest of those that we do."""
    return REGIONS.get(name) or Region(name, 0.01, 250_000)


def effective(preset: Preset, region: Region) -> Preset:
    """The preset that a radio really uses in a region."""
    return PRESETS["LONG_FAST"] if preset.bandwidth > region.widest else preset


def effective_preset(region: str, preset: str) -> Preset:
    """The same by the names that a radio tells; a preset that we do not know is taken for
    LONG_FAST."""
    return effective(PRESETS.get(preset, PRESETS["LONG_FAST"]), region_named(region))


def on_air(payload_size: int) -> int:
    """Bytes on air of a payload of ours: the radio's header of 16, and 7 of envelope, 8
    where the length of the payload takes two bytes.

    :raises UsageError: negative, or more than the radio carries.
    """
    require(0 <= payload_size <= MAX_PAYLOAD, "payload_size", f"must be 0..{MAX_PAYLOAD}")
    return payload_size + RADIO_HEADER + (7 if payload_size < 128 else 8)


def time_on_air_ms(size: int, preset: Preset) -> float:
    """Milliseconds of a LoRa frame of ``size`` bytes on air, all headers included.

    Source: Semtech SX1261/2 data sheet, section 6.1.4.

    :raises UsageError: the size is not 0..255.
    """
    require(0 <= size <= MAX_ON_AIR, "size", f"must be 0..{MAX_ON_AIR}")
    spreading = preset.spreading
    slow = preset.symbol_ms >= _SLOW_SYMBOL_MS
    bits = 8 * size + _CRC_BITS - 4 * spreading + 8 + _HEADER_BITS
    per_block = 4 * (spreading - 2 if slow else spreading)
    blocks = -(-max(bits, 0) // per_block)
    return (PREAMBLE_SYMBOLS + 4.25 + 8 + blocks * preset.coding) * preset.symbol_ms


def airtime_ms(payload_size: int, preset: Preset) -> float:
    """Milliseconds on air of a payload of ours, the radio's headers included.

    :raises UsageError: as :func:`on_air`.
    """
    return time_on_air_ms(on_air(payload_size), preset)


class Bucket:
    """A token bucket of milliseconds, full at first, that keeps to an hourly allowance.

    The law looks at every hour. What was saved up and what flows in can be spent within
    one hour, so together they are the allowance: a twelfth of it is saved up at most (five
    minutes' worth), the rest flows in over the hour.

    :param hourly_ms: what any hour may spend.
    """

    def __init__(self, hourly_ms: float, now: float) -> None:
        require(hourly_ms > 0, "hourly_ms", "must be more than 0")
        self.size = hourly_ms / 12
        self._rate = (hourly_ms - self.size) / HOUR  # ms of air per second
        self._level = self.size
        self._at = now

    def level(self, now: float) -> float:
        """Milliseconds that may be spent now; below 0 after an overdraft."""
        passed = max(0.0, now - self._at)
        return min(self.size, self._level + passed * self._rate)

    def spend(self, ms: float, now: float) -> None:
        """Milliseconds went on air, allowed or not."""
        self._level = self.level(now) - ms
        self._at = max(self._at, now)

    def when(self, ms: float, now: float) -> float:
        """When so much may be spent: ``now``, or later. More than the bucket ever holds
        may be spent when it is full."""
        lacking = min(ms, self.size) - self.level(now)
        return now if lacking <= 0 else now + lacking / self._rate


@dataclass(frozen=True, slots=True)
class Spending:
    """What a budget looks like now.

    :param spent_ms: our own frames of the last hour.
    :param left_ms: what may be spent at once.
    :param hourly_ms: what the law allows in an hour.
    """

    spent_ms: float
    left_ms: float
    hourly_ms: float


#: A minute's share of busy channel from which on we wait, as the firmware's own traffic does.
POLITE_UTILISATION = 0.25
#: And from which on even what is urgent waits.
URGENT_UTILISATION = 0.40
#: The radio tells its utilisation every 60 s; what it said holds for so many seconds.
_UTILISATION_HOLDS = 120.0
#: How long to wait on a busy channel before looking again, seconds.
_BUSY_WAIT = 10.0


class Budget:
    """What one radio may spend: the region's duty cycle, and politeness on a busy channel.

    :param spare: the part of the legal share that is ours (relayed traffic of others
        counts against the same law, and the radio refuses us when it is used up).
    """

    def __init__(self, region: Region, now: float, *, spare: float = 0.9) -> None:
        require(0 < spare <= 1, "spare", "must be more than 0, at most 1")
        self.region = region
        self.hourly_ms = region.duty_cycle * HOUR * 1000 * spare
        self._bucket = Bucket(self.hourly_ms, now)
        self._log: deque[tuple[float, float]] = deque()
        self._logged = 0.0
        self._utilisation = 0.0
        self._utilisation_at = now

    def spend(self, ms: float, now: float) -> None:
        """A frame of ours goes on air."""
        self._bucket.spend(ms, now)
        # Seconds of one minute are one entry: memory goes by minutes, not by frames.
        if self._log and now - self._log[-1][0] < 60.0:
            at, sum_ms = self._log.pop()
            self._log.append((at, sum_ms + ms))
        else:
            self._log.append((now, ms))
        self._logged += ms
        self._forget(now)

    def refused(self, now: float) -> None:
        """The radio said that its duty cycle is used up: ours is, then."""
        self._bucket.spend(max(0.0, self._bucket.level(now)), now)

    def channel(self, utilisation: float, now: float) -> None:
        """The radio's telemetry: the share of the last minute that the channel was busy."""
        self._utilisation = min(max(utilisation, 0.0), 1.0)
        self._utilisation_at = now

    def when(self, ms: float, now: float, *, urgent: bool = False) -> float:
        """When a frame of so many milliseconds may go: ``now``, or later (ask again then)."""
        limit = URGENT_UTILISATION if urgent else POLITE_UTILISATION
        heard = now - self._utilisation_at < _UTILISATION_HOLDS
        polite = now + _BUSY_WAIT if heard and self._utilisation >= limit else now
        return max(polite, self._bucket.when(ms, now))

    def state(self, now: float) -> Spending:
        """What was spent and what is left."""
        self._forget(now)
        left = max(0.0, self._bucket.level(now))
        return Spending(max(0.0, self._logged), left, self.hourly_ms)

    def _forget(self, now: float) -> None:
        while self._log and now - self._log[0][0] >= HOUR:
            self._logged -= self._log.popleft()[1]
