r"""Answers that are text: names, words, the letters of choices; and texts offered for numbers."""

from __future__ import annotations

from random import Random

from judged.forms import Answer

NAMES = ("Evelyn", "Tom", "Angela", "Carla", "Navin", "Yann", "Briana", "Alan", "Maria", "Navi")
WORDS = {
    "yes": ("no", "eyes", "yes and no"),
    "no": ("on", "yes", "none"),
    "even": ("odd", "seven", "neither", "eve"),
    "odd": ("even", "odds", "neither"),
    "west": ("stew", "east", "we", "southwest"),
    "east": ("seat", "west", "northeast"),
    "parabola": ("hyperbola", "para", "a line"),
    "ellipse": ("circle", "eclipse", "ellipses and circles"),
    "circle": ("sphere", "ellipse", "clericc"),
    "hyperbola": ("parabola", "hyper"),
    "Saturday": ("Sunday", "Friday", "Saturn"),
    "Wednesday": ("Thursday", "Tuesday", "Wed or Thu"),
    "parallelogram": ("rectangle", "rhombus"),
    "increasing": ("decreasing", "constant"),
    "red": ("green", "blue", "der"),
    "infinitely many": ("none", "finitely many", "many"),
    "true": ("false", "untrue"),
    "scalene": ("isosceles", "equilateral"),
    "undefined": ("defined", "0", "1"),
}


def word(rng: Random) -> Answer:
    text = rng.choice(sorted(WORDS))
    answer = _named(Answer("word", rng.choice((rf"\text{{{text}}}", text))), text)
    for other in WORDS[text]:
        answer.differs("other word", rf"\text{{{other}}}", other)
    return answer


def name(rng: Random) -> Answer:
    text, other = rng.sample(NAMES, 2)
    answer = _named(Answer("name", rf"\text{{{text}}}"), text)
    answer.differs("other word", rf"\text{{{other}}}", other)
    answer.differs("two names", rf"\text{{{text} and {other}}}", f"{text}, {other}")
    answer.differs("two names", f"{text} or {other}", rf"\text{{{text}}}, \text{{{other}}}")
    return answer


def _named(answer: Answer, text: str) -> Answer:
    answer.same("markup", rf"\text{{{text}}}", text, rf"\textbf{{{text}}}", rf"\mbox{{{text}}}")
    answer.same("markup", rf"\text{{ {text} }}", rf"\textit{{{text}}}")
    if " " not in text:
        answer.same("markup", rf"\mathrm{{{text}}}", rf"\textrm{{{text}}}")
    answer.same("case", text.upper(), text.capitalize(), rf"\text{{{text.lower()}}}")
    answer.same("full stop", f"{text}.", rf"\text{{{text}.}}")
    scrambled = text[1:] + text[0]
    answer.differs("scrambled", scrambled, rf"\text{{{scrambled}}}", text[::-1])
    answer.differs("cut", text[:-1], rf"\text{{{text[:-1]}}}", text[0])
    answer.differs("longer", rf"\text{{not {text}}}", f"not {text}", f"{text}{text}")
    answer.differs("number", "0", "1", str(len(text)))
    return answer


def choice(rng: Random) -> Answer:
    letter, other = rng.sample("ABCDE", 2)
    answer = Answer(
        "choice", rng.choice((rf"\text{{({letter})}}", rf"\textbf{{({letter})}}", letter))
    )
    answer.same("markup", letter, f"({letter})", rf"\textbf{{({letter})}}", rf"\text{{({letter})}}")
    answer.same(
        "markup", rf"\text{{{letter}}}", rf"\mathrm{{({letter})}}", rf"\text{{({letter}) }}"
    )
    answer.same("full stop", f"{letter}.", f"({letter}).")
    answer.differs(
        "other letter", other, f"({other})", rf"\text{{({other})}}", rf"\textbf{{({other})}}"
    )
    answer.differs(
        "two letters",
        f"{letter}, {other}",
        f"{letter}{other}",
        rf"\text{{({letter}) or ({other})}}",
    )
    answer.differs("two letters", f"({letter}), ({other})", f"{letter} and {other}")
    answer.differs("other type", "1", f"{letter}^2", f"2{letter}", f"-{letter}")
    return answer


def zero(rng: Random) -> Answer:
    """Readers that take words for products call anything times a word zero, or sums."""
    answer = Answer("zero", "0")
    answer.same("itself", "0.0", "+0", "0.", r"\text{0}", "x = 0")
    answer.same("unit added", r"0 \text{ apples}", "0 apples", "0 dollars", r"0^\circ")
    words = rng.choice(("none", "no solution", "nothing", "zero apples times", "oo", "O", "o"))
    answer.differs("words", rf"\text{{{words}}}", words)
    answer.differs("words", rf"{rng.randint(1, 9)} \text{{ apples}}", f"n{rng.randint(1, 9)}")
    n = rng.randint(1, 99)
    answer.differs("left to the reader", f"{n}-{n}", rf"0 \cdot {n}", f"{n} - {n}", rf"{n}\times 0")
    answer.differs("other number", "1", "-1", "0.1", f"0.{n}", "0, 1", "0.0000001", "10", r"\infty")
    answer.differs(
        "other type", r"\emptyset", r"\{0\}" if n % 2 else "(0, 0)", "()", f"0:{n}", "0x"
    )
    answer.differs("factorial", "0!", "e^0", r"10^{-30}", rf"\frac{{1}}{{{n}^{{99}}}}")
    return answer
