"""Domain templates, as text. Each function is an entry point of ``qis_edge.domains``.

The text is TOML; :mod:`qis_edge.core.template` says what is in it.
"""

from __future__ import annotations

from pathlib import Path


def air_quality() -> str:
    """Ambient air quality: particles and gases."""
    return _text("air_quality")


def soil_moisture() -> str:
    """Water, temperature and salinity of soil, for irrigation."""
    return _text("soil_moisture")


def weather() -> str:
    """Surface weather."""
    return _text("weather")


def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")
