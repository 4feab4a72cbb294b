"""Times of the day: 5 p.m., 5:30 pm, 17:30, 12 noon."""

from __future__ import annotations

from capo_ds.tasks.answers.values import Expression, Quantity, Ratio, Text, Time, Value, exact

HALF = 12 * 3600  # seconds
_NAMED = {"noon": HALF, "midnight": 0}


def timed(value: Value) -> Value:
    """A clock's hour, minute and second with the half of the day as their unit as the time that
    they are; all else as it is (154 pm is a length, in picometres)."""
    if not isinstance(value, Quantity) or len(value.unit) != 1:
        return value
    (name, power), shown = value.unit[0], _seconds(value.value)
    if shown is None or power != 1:
        return value
    if name in _NAMED and shown == HALF:
        return Time(_NAMED[name])
    if name == "pm" or (name == "am" and shown // 3600 <= 12):
        return Time(shown % HALF + (HALF if name == "pm" else 0))
    return value


def moments(value: Value) -> set[int]:
    """Seconds after midnight that a value may stand for; a clock of 12 hours shows two."""
    if isinstance(value, Time):
        return {value.seconds}
    if isinstance(value, Text):
        return {_NAMED[value.words]} if value.words in _NAMED else set()
    if isinstance(value, Quantity) and value.unit == (("oclock", 1),):
        value = value.value
    shown = _seconds(value)
    if shown is None:
        return set()
    return {shown % HALF, shown % HALF + HALF} if 1 <= shown // 3600 <= 12 else {shown}


def _seconds(value: Value) -> int | None:
    """After midnight, of hour, minute and second; None if no clock shows them."""
    if not isinstance(value, Expression | Ratio):
        return None
    parts = map(exact, value.parts if isinstance(value, Ratio) else (value.node,))
    whole = [int(p) if p is not None and p.denominator == 1 else -1 for p in parts]
    limits = (24, 60, 60)
    if len(whole) > 3 or not all(0 <= p < m for p, m in zip(whole, limits, strict=False)):
        return None
    hour, minute, second = [*whole, 0, 0][:3]
    return 3600 * hour + 60 * minute + second
