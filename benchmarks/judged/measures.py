r"""Numbers with something that belongs to them: units, degrees, money, percent, times, bases."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from judged.forms import Answer, grouped, other_numbers, written

# Unit of a reference to others that are not it.
UNITS = {
    "cm": ("m", "inches", "kg"),
    "inches": ("feet", "cm", "miles"),
    "feet": ("inches", "yards", "meters"),
    "miles": ("km", "feet", "hours"),
    "hours": ("minutes", "days", "miles"),
    "minutes": ("hours", "seconds", "days"),
    "kg": ("g", "pounds", "km"),
    "mph": ("km/h", "miles", "hours"),
}
COUNTED = {
    "apples": ("oranges", "pears"),
    "books": ("pages", "boxes"),
    "students": ("teachers", "boys"),
    "marbles": ("cards", "stickers"),
    "dollars": ("cents", "euros"),
    "cookies": ("cakes", "boxes"),
}


def unit(rng: Random) -> Answer:
    name = rng.choice(sorted(UNITS))
    n = rng.randint(2, 400)
    power = rng.choice(("", "", "^2", "^3")) if name in ("cm", "inches", "feet") else ""
    answer = Answer("unit", rf"{n}\text{{ {name}}}{power}")
    answer.same("unit dropped", str(n), f"{n}.0")
    answer.same("markup", rf"{n} \text{{ {name}}}{power}", rf"{n}\,\text{{{name}}}{power}")
    answer.same("markup", rf"{n}\ \mathrm{{{name}}}{power}", rf"{n}~\mbox{{{name}}}{power}")
    answer.same("plain", f"{n} {name}{power}")
    answer.same("variable before it", rf"x = {n}\text{{ {name}}}{power}")
    for other in UNITS[name]:
        answer.differs("other unit", rf"{n}\text{{ {other}}}{power}", f"{n} {other}{power}")
    other_power = "^3" if power == "^2" else "^2"
    if name in ("cm", "inches", "feet"):
        answer.differs("power of the unit", rf"{n}\text{{ {name}}}{other_power}")
        if power:
            answer.differs("power of the unit", rf"{n}\text{{ {name}}}")
    for kind, other in other_numbers(n):
        answer.differs(kind, rf"{other}\text{{ {name}}}{power}")
    answer.differs("sum", rf"{n - 1}+1\text{{ {name}}}{power}", f"{n - 1}+1")
    return answer


def counted(rng: Random) -> Answer:
    """References as ASDiv publishes them."""
    name = rng.choice(sorted(COUNTED))
    n = rng.randint(2, 300)
    answer = Answer("counted", f"{n} ({name})")
    answer.same("unit dropped", str(n), f"{n}.0", f"+{n}", rf"\text{{{n}}}")
    answer.same("plain", f"{n} {name}", rf"{n} \text{{ {name}}}", rf"{n}\text{{ {name}}}")
    answer.same("itself", f"{n} ({name})", f"{n}({name})", rf"{n} \text{{ ({name})}}")
    for other in COUNTED[name]:
        answer.differs("other unit", f"{n} {other}", rf"{n} \text{{ {other}}}")
    for kind, other in other_numbers(n):
        answer.differs(kind, str(other), f"{other} {name}", f"{other} ({name})")
    answer.differs("sum", f"{n - 1}+1", f"{n - 1} + 1 {name}")
    answer.differs("the unit alone", name, rf"\text{{{name}}}")
    if name == "dollars":
        answer.same("money", rf"\${n}", f"${n}")
    return answer


def degrees(rng: Random) -> Answer:
    n = rng.randint(2, 179)
    answer = Answer("degrees", rf"{n}^\circ")
    answer.same("other sign", f"{n}°", rf"{n}^{{\circ}}", rf"{n}\degree", rf"{n} ^ \circ")
    answer.same("words", f"{n} degrees", rf"{n} \text{{ degrees}}", rf"{n}\text{{ degrees}}")
    answer.same("unit dropped", str(n), f"{n}.0")
    answer.same("variable before it", rf"x = {n}^\circ", rf"\theta = {n}^\circ")
    answer.differs("other unit", rf"{n}\text{{ radians}}", f"{n}'", f"{n} radians", rf"{n}\%")
    answer.differs("other unit", rf"{n}''", rf"{n}\text{{ minutes}}")
    answer.differs("sum", rf"{n - 1}+1", rf"{n - 1}+1^\circ", rf"{n - 1}^\circ+1^\circ")
    answer.differs("complement", rf"{180 - n}^\circ" if n != 90 else r"0^\circ")
    for kind, other in other_numbers(n):
        answer.differs(kind, rf"{other}^\circ", f"{other}°")
    return answer


def money(rng: Random) -> Answer:
    cents = rng.randint(105, 99_999)
    value = Fraction(cents, 100)
    text = f"{cents // 100}.{cents % 100:02d}"
    answer = Answer("money", rf"\${text}")
    answer.same("sign dropped", text, written(value))
    answer.same("sign", f"${text}", rf"\$ {text}", rf"\text{{\${text}}}")
    answer.same(
        "words", f"{text} dollars", rf"{text} \text{{ dollars}}", rf"{text}\text{{ dollars}}"
    )
    answer.differs("other currency", f"€{text}", f"£{text}", rf"{text} \text{{ euros}}")
    answer.differs("cents", f"{text} cents", str(cents), rf"\${cents}")
    answer.differs("off by a cent", rf"\${(cents + 1) // 100}.{(cents + 1) % 100:02d}")
    if cents % 100:
        answer.differs("rounded", rf"\${cents // 100}", str(cents // 100))
    if rng.random() < 0.5:
        n = rng.randint(1001, 99_999)
        separator = rng.choice((",", r",\!", "{,}"))
        answer = Answer("money", rf"\${grouped(n, separator)}")
        answer.same("sign dropped", str(n), f"{n:,}", f"{n}.00", f"{n:,}.00")
        answer.same("sign", f"${n:,}", rf"\${n}", rf"\${n}.00")
        answer.same("words", f"{n} dollars", rf"{n:,} \text{{ dollars}}")
        answer.differs("other currency", f"€{n:,}", f"£{n}", f"{n} euros", f"{n} cents")
        for kind, other in other_numbers(n):
            answer.differs(kind, rf"\${other}", str(other))
    return answer


def percent(rng: Random) -> Answer:
    n = rng.choice((rng.randint(1, 99), rng.randint(100, 400))) * rng.choice((1, 1, 1, -1))
    answer = Answer("percent", rf"{n}\%")
    answer.same("other sign", f"{n}%", rf"{n} \%", rf"{n}\,\%", rf"{n}.0\%")
    answer.same("words", f"{n} percent", rf"{n} \text{{ percent}}", rf"{n}\text{{ percent}}")
    answer.same("number", written(Fraction(n, 100)))
    answer.same("variable before it", rf"x = {n}\%")
    for kind, other in other_numbers(n):
        answer.differs(kind, rf"{other}\%")
    answer.differs("a hundredth", rf"{written(Fraction(n, 100))}\%")
    answer.differs("other unit", rf"{n}^\circ", rf"\${n}", f"{n} dollars")
    return answer


def time(rng: Random) -> Answer:
    hour, minute = rng.randint(1, 12), rng.randint(10, 59)
    half = rng.choice(("am", "pm", "pm"))
    other_half = "pm" if half == "am" else "am"
    dotted = f"{half[0]}.m."
    answer = Answer("time", rf"{hour}:{minute}\text{{ {dotted}}}")
    if rng.random() < 0.4:
        answer.reference = f"{hour}:{minute} {dotted}"
    answer.same("half of the day", f"{hour}:{minute} {half}", f"{hour}:{minute} {half.upper()}")
    answer.same(
        "half of the day", f"{hour}:{minute} {half[0].upper()}.M.", f"{hour}:{minute}{half}"
    )
    answer.same(
        "markup", rf"\text{{{hour}:{minute} {dotted}}}", rf"{hour}:{minute} \text{{ {half}}}"
    )
    answer.differs(
        "other half", f"{hour}:{minute} {other_half}", f"{hour}:{minute} {other_half[0]}.m."
    )
    later = minute + 1 if minute < 59 else 10
    answer.differs("minute", f"{hour}:{later} {half}", rf"{hour}:{later}\text{{ {dotted}}}")
    answer.differs("hour", f"{hour % 12 + 1}:{minute} {half}")
    answer.differs(
        "other type", str(hour), f"{hour}/{minute}", f"{hour}.{minute}", f"{hour * minute}"
    )
    if rng.random() < 0.4:
        answer = Answer("time", f"{hour}:{minute}")
        answer.same(
            "markup", rf"\text{{{hour}:{minute}}}", rf"{hour} : {minute}", f"{hour}{{:}}{minute}"
        )
        answer.differs("minute", f"{hour}:{later}", f"{later}:{hour}")
        answer.differs("product", str(hour * minute), f"{2 * hour}:{2 * minute}")
        if hour % 2 == 0 and minute % 2 == 0:
            answer.differs("reduced", f"{hour // 2}:{minute // 2}")
        answer.differs("other type", f"{hour}, {minute}", f"{hour}{minute}", f"({hour},{minute})")
    return answer


def ratio(rng: Random) -> Answer:
    a, b = Fraction(rng.randint(1, 20), rng.randint(2, 15)).as_integer_ratio()
    if b == 1:
        return ratio(rng)
    answer = Answer("ratio", f"{a}:{b}")
    answer.same("spacing", f"{a} : {b}", rf"{a}\colon {b}", f"{a}: {b}", rf"\text{{{a}:{b}}}")
    answer.differs("swapped", f"{b}:{a}", f"{b} : {a}")
    answer.differs("off by one", f"{a + 1}:{b}", f"{a}:{b + 1}")
    answer.differs(
        "other type", f"{a}, {b}", f"({a}, {b})", str(a * b), f"{a}{b}", str(a), f"{a}-{b}"
    )
    answer.differs("longer", f"{a}:{b}:1")
    return answer


def based(rng: Random) -> Answer:
    base = rng.randint(3, 9)
    digits = [rng.randint(1, base - 1)] + [
        rng.randint(0, base - 1) for _ in range(rng.randint(1, 4))
    ]
    text = "".join(map(str, digits))
    answer = Answer("base", f"{text}_{base}")
    answer.same(
        "markup", rf"{text}_{{{base}}}", rf"({text})_{{{base}}}", rf"\text{{{text}}}_{{{base}}}"
    )
    answer.same("markup", rf"{text}_{{\text{{{base}}}}}", rf"{text} _ {base}")
    answer.same("variable before it", f"x = {text}_{base}")
    answer.differs(
        "other base", rf"{text}_{{{base + 1}}}", rf"{text}_{{{base - 1}}}", rf"{text}_{{16}}"
    )
    answer.differs("base dropped", text)
    digits[-1] = (digits[-1] + 1) % base
    answer.differs("last digit", "".join(map(str, digits)) + f"_{base}")
    answer.differs("sign", f"-{text}_{base}")
    answer.differs("subscript read as text", f"{text}{base}", f"{text}^{base}", f"{text}, {base}")
    if text[::-1] != text:
        answer.differs("backwards", f"{text[::-1]}_{base}")
    return answer
