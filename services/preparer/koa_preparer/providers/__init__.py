"""Program, schedule and weather facts from a TOML file or the observatory's API."""

from .models import (
    WEATHER_KEYS,
    Facts,
    Night,
    Override,
    Proposal,
    Provider,
    Slot,
    Weather,
    late,
)

__all__ = [
    "WEATHER_KEYS",
    "Facts",
    "Night",
    "Override",
    "Proposal",
    "Provider",
    "Slot",
    "Weather",
    "late",
]
