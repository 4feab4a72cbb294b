r"""Completions that are made to break what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

REFERENCES = (
    "16", r"\frac{1}{2}", "0.35", "(1,2)", "[0,1)", r"\{1,2\}", "1, -2", r"\pm 3", "x^2+2x+1",
    r"\sqrt{2}", r"3+2\sqrt{5}", r"\frac{x}{x+1}", "2^{99}", "y=2x+3", r"x \in [-2,7]", r"10\%",
    r"5\text{ cm}^2", "9 (apples)", "3:30 p.m.", "4210_5", r"\text{even}", "6-5i", r"\frac{1}{20!}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"(-\infty,2)\cup(3,\infty)", r"\sin 2x", "",
)  # fmt: skip
TOKENS = (
    *"0123456789", *"xyzabeinπ∞½²٣", *"+-*/^_=<>(){}[]|,;:.!'\"$%&~#@? \n\t", "\\", "\\\\", "\0",
    "\ud800", "\udfff", "\u202e", "\u200b", "\u0301", "^{", "_{", "!!", "1e9", "10^10", "None",
    "nan", "__import__", "lambda", "0x", "{}", r"\begin{pmatrix}", r"\end{pmatrix}", r"\text{",
    r"\frac", r"\sqrt", r"\left(", r"\right)", r"\{", r"\}", r"\pm", r"\cup", r"\in", r"\infty",
    r"\cdot", r"\times", r"\le", r"\log_", r"\sin", r"\binom", r"\pi", r"\%", r"\,", r"\circ",
    r"\over", r"\sum_{k=1}^{10^9}", r"\int_0^x",
)  # fmt: skip


def answers(rng: Random) -> Iterator[str]:
    """Contents of boxes, one of each kind, of sizes drawn anew."""
    n, big = rng.randint(2, 400), rng.choice((10, 100, 10_000, 1_000_000))
    m, letter = rng.randint(2, 40), rng.choice("xyabe")
    yield "{" * n + "1" + "}" * n
    yield "(" * n + letter + ")" * n
    yield r"\frac{1}{" * m + "2" + "}" * m
    yield r"\sqrt{" * m + "2" + "}" * m
    yield r"\left(" * m + "1" + r"\right)" * m
    yield "^".join(["9"] * rng.randint(3, 9))
    yield f"{m}^{{{n}^{{{n}}}}}"
    yield "10^10^10"
    yield f"{n * 1000}!"
    yield f"(({m}!)!)!"
    yield "9" * big
    yield "1" * rng.randint(4290, 4310)
    yield f"1e{big}9"
    yield f"0.{'3' * n}"
    yield f"1{',000' * m}"
    yield f"({letter}+1)^{{{n}}}"
    yield f"(a+b+c+d+{letter})^{{{m}}}"
    yield "".join(f"(x+{k})" for k in range(m))
    yield "+".join(rf"\sqrt{{{k * n + 2}}}" for k in range(m))
    yield "+".join(rf"\frac{{1}}{{x+{k}}}" for k in range(m))
    yield r"\sin(" * m + "x" + ")" * m
    yield rf"\binom{{10^{m}}}{{{n}}}"
    yield rf"\sum_{{k=1}}^{{{big}}} k^{{{n}}}"
    yield r"\begin{pmatrix}" + r"\\".join("&".join("1" * m) for _ in range(m)) + r"\end{pmatrix}"
    yield r"\{" + ",".join(map(str, range(n))) + r"\}"
    yield ",".join([letter] * n)
    yield "/".join("1" * n)
    yield "-" * n + "5"
    yield "5" + "!" * n
    yield "x_{" * m + "1" + "}" * m
    yield r"\text{" * m + "a" + "}" * m
    yield "\0" * rng.randint(1, big)
    yield "\ud800\udfff" * m
    yield "٣" * m
    yield "\N{FULLWIDTH DIGIT ONE}\N{SUPERSCRIPT TWO}"
    yield "\u0301" * n + "5"
    yield r"\frac{1}{0}"
    yield r"\frac{0}{0} + \infty - \infty"
    yield "0^{0^{-1}}"
    yield rf"1_{{{n}}}"
    yield f"{'1' * m}_{{{m}}}"
    yield rf"{n}:{m}:{n}:{m} \text{{ p.m.}}"
    yield f'"]\n["{letter}", {n}]'
    yield "__import__('os').kill(1, 9)"
    yield r"\input{/etc/passwd}\write18{id}"
    yield "{0.__class__}" + "%s%n" * m
    yield r"\le".join(map(str, range(n)))
    yield r"\cup".join(f"({k},{k + 1})" for k in range(m))
    yield rf"\pm {n} \pm " * m + "1"
    yield "=".join(["1"] * n)
    yield " or ".join(["1"] * n)
    yield rf"{n}\frac{{{n}}}{{{m}}}" * m
    yield rf"\log_{{1}} {n} + \log 0 + \ln(-{n})"
    yield rf"e^{{i\pi}} + i^{{{n}}} + i^{{i}}"
    yield rf"\sqrt[{n}]{{-{m}}} + 0^{{-1}}"
    yield f"{letter}^{{{n}}} - {letter}^{{{n}}} + " * m + "1"


def completions(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """(completion, reference): each kind in turn, and as many draws of tokens."""
    rng = Random(f"hostile/{seed}")
    made = 0
    while made < count:
        for answer in answers(rng):
            soup = "".join(rng.choices(TOKENS, k=rng.choice((3, 8, 20, 60, 200))))
            for content in (answer, soup):
                if made == count:
                    return
                made += 1
                box = rf"\boxed{{{content}}}"
                yield box if rng.random() < 0.95 else content + box * 2, rng.choice(REFERENCES)
