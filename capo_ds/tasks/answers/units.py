"""Units and words beside a number, in one spelling."""

from __future__ import annotations

import re
from fractions import Fraction

from capo_ds.tasks.answers.values import Unit, Unreadable

_SPELLINGS = {
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre kms",
    "m": "meter metre", "in": "inch inches", "ft": "foot feet", "yd": "yard yds", "mi": "mile",
    "kg": "kilogram kgs kilo", "g": "gram gm", "mg": "milligram", "lb": "pound lbs", "oz": "ounce",
    "l": "liter litre", "ml": "milliliter millilitre", "gal": "gallon",
    "s": "second sec secs", "min": "minute mins", "h": "hour hr hrs", "day": "days",
    "week": "wk wks", "month": "mo", "year": "yr yrs", "degree": "deg degs", "radian": "rad rads",
    "dollar": "usd", "cent": "cents", "euro": "eur", "unit": "", "child": "children",
    "person": "people", "pm": "", "am": "", "man": "men", "woman": "women",
}  # fmt: skip
_CANONICAL = {s: name for name, words in _SPELLINGS.items() for s in [name, *words.split()]}
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip
# Words that change or deny the number beside them: no unit.
_NO_UNIT = {
    "or", "and", "but", "not", "no", "nor", "isn", "is", "are", "was", "wrong", "never", "than",
    "then", "more", "less", "fewer", "least", "most", "about", "approximately", "approx",
    "around", "roughly", "nearly", "almost", "over", "under", "above", "below", "between", "from",
    "up", "minus", "plus", "times", "divided", "squared", "cubed", "half", "halves", "third",
    "thirds", "quarter", "quarters", "fourth", "fourths", "fifth", "fifths", "tenth", "tenths",
    "hundredth", "hundredths", "thousandth", "thousandths", "percent", "percents", "percentage",
    "negative", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty",
    "ninety", "hundred", "hundreds", "thousand", "thousands", "million", "millions", "billion",
    "billions", "trillion", "dozen", "dozens", "double", "twice", "triple", "factorial", "point",
    "base", "mod", "modulo", "remainder", "pi", "tens", "ones", "maybe", "instead", "sqrt",
    "root", "power", "exceeds", "if", "unless", "other", "except", "without", "k", "bn", "mn",
}  # fmt: skip
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_ABBREVIATED = {"mph": (("h", -1), ("mi", 1)), "kph": (("h", -1), ("km", 1))}
_MAX_WORDS = 6
BARE = {*_CANONICAL, *_POWERS, *_ABBREVIATED, *SCALES, "per", "percent"} - {
    "m", "g", "s", "l", "h", "mo",
}  # fmt: skip


def canonical(word: str) -> str:
    """One spelling of a unit or a noun: lower case, singular."""
    word = word.lower().replace(".", "").strip("'-")
    if word in _CANONICAL:
        return _CANONICAL[word]
    for ending, singular in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"),
                             ("xes", "x"), ("ss", "ss"), ("s", "")):  # fmt: skip
        if word.endswith(ending) and len(word) > len(ending) + 1:
            word = word[: len(word) - len(ending)] + singular
            break
    return _CANONICAL.get(word, word)


def is_unit_word(word: str, spaced: bool) -> bool:
    """Whether bare letters after a number are a unit or a noun, not a product of variables."""
    if word.lower() in BARE:
        return True
    vowels = bool(re.search("[aeiou]", word.lower()))
    if not vowels or not word.isalpha():
        return False
    middle = re.fullmatch("[b-df-hj-np-tv-z][aeiou][b-df-hj-np-tv-z]", word.lower())
    return len(word) >= 4 or (spaced and len(word) == 3 and middle is not None)


class Phrase:
    """A unit as it is read, word by word."""

    def __init__(self):
        self.powers: dict[str, int] = {}
        self.order: list[str] = []
        self.scale: Fraction | None = None
        self._sign, self._power, self._words = 1, 1, 0

    def add(self, text: str) -> None:
        """Words such as `square feet per hour`, `p.m.`, `miles/hour`.

        Raises:
            Unreadable: a word that changes the number (`or more`, `percent of`).
        """
        for word in re.findall(r"[A-Za-z.'\-]+|/", text):
            self._word(word)

    def _word(self, word: str) -> None:
        lower = word.lower().strip(".'-")
        self._words += 1
        if not lower or self._words > _MAX_WORDS + 2:
            if lower:
                raise Unreadable("many words beside the number")
        elif lower == "per" or word == "/":
            self._sign = -1
        elif lower in SCALES and not self.order and self.scale is None:
            self.scale = Fraction(SCALES[lower])
        elif lower == "squared" and self.order:
            self.raise_last(2)
        elif lower == "cubed" and self.order:
            self.raise_last(3)
        elif lower in _NO_UNIT:
            raise Unreadable(f"the word {word!r} changes the number beside it")
        elif lower in _POWERS:
            self._power = _POWERS[lower]
        elif lower in _ABBREVIATED:
            for name, power in _ABBREVIATED[lower]:
                self.put(name, power)
        elif lower not in ("of", "the", "a", "an"):
            self.put(canonical(word), self._sign * self._power)
            self._power = 1
            self._sign = 1 if self._sign > 0 else -1

    def put(self, name: str, power: int = 1) -> None:
        """One unit, in its one spelling."""
        self.powers[name] = self.powers.get(name, 0) + power
        self.order.append(name)

    def raise_last(self, power: int) -> None:
        """cm, then ^2."""
        if not self.order or not 1 <= abs(power) <= 9:
            raise Unreadable("a power without a unit")
        self.powers[self.order[-1]] *= power

    def unit(self) -> Unit:
        """What was read."""
        return tuple(sorted((name, power) for name, power in self.powers.items()))
