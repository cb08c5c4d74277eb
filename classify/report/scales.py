"""Where a value stands on an axis, and which values are written beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isclose, log10

_STEPS = (1, 2, 5, 10)
_N_INTERVALS = 5
_DECADE = (1, 2, 5)
_MOST_LOG_TICKS = 6


@dataclass(frozen=True)
class Scale:
    """Maps values ``low`` to ``high`` onto positions ``start`` to ``stop``, in units of a drawing.

    With ``is_log`` equal ratios are equally far apart; ``low`` must be above 0 then.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, rounded to a tenth."""
        low, high, at = (self._place(one) for one in (self.low, self.high, value))
        share = 0.5 if isclose(low, high) else (at - low) / (high - low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Return the positions that are marked, and what is written there."""
        values = _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high)
        return tuple((self(value), f"{value:,.10g}") for value in values)

    def _place(self, value: float) -> float:
        return log10(value) if self.is_log else value


def spread(values: list[float], *, margin: float = 0.06) -> tuple[float, float]:
    """Return the least and the greatest value with a margin, a share of their distance."""
    low, high = min(values), max(values)
    more = (high - low) * margin or abs(high) * margin or 1.0
    return low - more, high + more


def _ticks(low: float, high: float) -> list[float]:
    """Return round values from ``low`` to ``high``, about five."""
    if not high > low:
        return [low]
    rough = (high - low) / _N_INTERVALS
    power = 10.0 ** floor(log10(rough))
    step = power * next(one for one in _STEPS if one * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, with 2 and 5 times them where there is room."""
    powers = [10.0**n for n in range(floor(log10(low)), ceil(log10(high)) + 1)]
    for factors in (_DECADE, (1,)):
        found = [f * power for power in powers for f in factors if low <= f * power <= high]
        if len(found) <= _MOST_LOG_TICKS:
            break
    return found or [low, high]
