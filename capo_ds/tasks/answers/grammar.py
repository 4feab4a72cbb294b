r"""Expressions by recursive descent: sum, term, factor, atom.

An atom may also be a value that is no expression, such as a tuple or a set; with such, nothing can
be calculated. Two numbers side by side are no product: `10\,5` is read as nothing.
"""

from __future__ import annotations

from fractions import Fraction

from capo_ds.tasks.answers import brackets
from capo_ds.tasks.answers.cursor import END, Cursor
from capo_ds.tasks.answers.nodes import INFINITY, Node, combined, number, symbol
from capo_ds.tasks.answers.tokens import FUNCTIONS, GREEK, Token
from capo_ds.tasks.answers.units import is_unit_word
from capo_ds.tasks.answers.values import Based, Expression, Unreadable, Value

APPLIED = {"f", "g", "h", "P", "F", "G"}  # letters that before a bracket are functions
_ATOMS = FUNCTIONS | GREEK | {
    "frac", "sqrt", "binom", "pi", "infty", "{", "emptyset", "langle", "lfloor", "lceil", "angle",
    "overline", "mathbb", "triangle", "vec", "hat", "bar", "widehat", "arccot",
}  # fmt: skip
MAX_DECIMALS_REPEATED = 40
MAX_BASE = 36
BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16,
}  # fmt: skip


class Parser(Cursor):
    """Reads tokens from left to right; `Unreadable` where they are no answer."""

    # ---------------------------------------------------------------- sums and products

    def sum(self) -> Node | Value:
        terms = [self._signed(self.accept("+", "-", "pm", "mp"))]
        while sign := self.accept("+", "-", "pm", "mp"):
            terms.append(self._signed(sign))
        return terms[0] if len(terms) == 1 else combined("add", [plain(term) for term in terms])

    def _signed(self, sign: str | None) -> Node | Value:
        term = self.term()
        if sign in (None, "+"):
            return term
        head = {"-": "neg", "pm": "pm", "mp": "mp"}[sign]
        inner = plain(term)
        if head == "neg" and inner.head == "num" and inner.args[0] > 0:
            return number(-inner.args[0])
        return Node(head, (inner,))

    def term(self) -> Node | Value:
        first_is_integer = self.next.kind == "number" and self.next.text.isdigit()
        product = self.factor()
        if not isinstance(product, Node) or product.head == "word":
            return product
        if first_is_integer and isinstance(product, Node) and product.head == "num":
            product = self._mixed(product)
            product = Node("percent", (product,)) if self.accept("%") else product
        factors = [product]
        while True:
            if operator := self.accept("*", "/", "div"):
                factor = plain(self.factor())
                if operator == "div":  # it asks to divide: not a fraction, a number's form
                    factor = Node("pow", (factor, number(-1)))
                if operator == "/":
                    whole = combined("mul", [plain(f) for f in factors])
                    factors = [Node("div", (whole, factor))]
                    continue
            elif self._starts_factor():
                factor = plain(self.factor())
            else:
                break
            factors.append(factor)
        return factors[0] if len(factors) == 1 else product_of([plain(f) for f in factors])

    def _mixed(self, whole: Node) -> Node:
        """A mixed number, where a proper fraction of integers stands behind an integer."""
        start = self.position
        if self.at("frac"):
            part = plain(self.atom())
        elif self.next.kind == "number" and self.next.spaced and self.next.text.isdigit():
            top = self.next
            self.position += 1
            bottom = self.after(1)
            if not self.at("/") or bottom.kind != "number" or not bottom.text.isdigit():
                raise Unreadable("two numbers side by side")
            self.position += 2
            part = Node("div", (number(int(top.text)), number(int(bottom.text))))
        else:
            return whole
        values = [arg.args[0] for arg in part.args if isinstance(arg, Node) and arg.head == "num"]
        if len(values) != 2 or any(value.denominator != 1 for value in values):
            self.position = start
            return whole
        if not 0 < values[0] < values[1]:
            raise Unreadable("an integer beside a fraction that is no mixed number")
        return number(whole.args[0] + values[0] / values[1])

    def _starts_factor(self) -> bool:
        """Whether the next token is multiplied without a sign."""
        kind, text, spaced = self.next
        if kind == "letters":
            return len(text) == 1 or not is_unit_word(text, spaced)
        if kind == "begin":
            return False
        if kind == "mark":
            if text == "(" and self._words_in_brackets():
                return False
            return text in ("(", "[") or (text == "|" and not self.bars)
        if kind == "number":
            raise Unreadable("a number right after another factor")
        return kind == "command" and (text in _ATOMS or text.startswith("bold "))

    def _words_in_brackets(self) -> bool:
        """9 (apples)"""
        kind, text, _ = self.after()
        return kind == "words" or (kind == "letters" and len(text) > 1 and is_unit_word(text, True))

    # ---------------------------------------------------------------- factors

    def factor(self) -> Node | Value:
        node = self.atom()
        while self.next.kind in ("mark", "command"):
            if self.at("^"):
                if self.is_degree():
                    if not self.in_function:
                        break  # it is the unit of a quantity
                    self.skip_degree()
                    node = Node("degree", (node,))
                    continue
                self.position += 1
                node = Node("pow", (plain(node), self.exponent()))
            elif self.at("!"):
                self.position += 1
                node = Node("factorial", (plain(node),))
            elif self.at("%"):
                self.position += 1
                node = Node("percent", (plain(node),))
            elif self.at("'") and isinstance(node, Node) and node.head == "sym":
                self.position += 1
                node = symbol(node.args[0] + "'")
            else:
                break
        return node

    def exponent(self) -> Node:
        if self.accept("{"):
            inner = plain(self.sum())
            self.expect("}")
            return inner
        negative = bool(self.accept("-"))
        inner = self._bare_exponent()
        return Node("neg", (inner,)) if negative else inner

    def _bare_exponent(self) -> Node:
        if self.next.kind == "number":
            return self._number()
        return plain(self.atom())

    def argument(self) -> Node:
        r"""Of a command: a group, or one token; of 12 in `\frac12`, the 1."""
        if self.accept("{"):
            inner = plain(self.sum())
            self.expect("}")
            return inner
        kind, text, _ = self.next
        if kind == "number" and text.isdigit():
            if len(text) > 1:
                self.tokens[self.position] = Token("number", text[1:])
            else:
                self.position += 1
            return number(int(text[0]))
        if kind == "letters" and len(text) > 1:
            self.tokens[self.position] = Token("letters", text[1:])
            return symbol(text[0])
        return plain(self.atom())

    # ---------------------------------------------------------------- atoms

    def atom(self) -> Node | Value:
        kind, text, _ = self.next
        if kind == "number":
            return self._based() if self.after().text == "_" else self._number()
        if kind == "letters":
            return self._letters()
        if kind == "words":
            return self.words()
        if kind == "begin":
            return brackets.matrix(self)
        if kind == "mark" and text in ("(", "[", "{", "|"):
            return brackets.bracketed(self)
        if kind == "command":
            return self._command()
        raise Unreadable(f"{text or 'the end'!r} where a value should stand")

    def _number(self) -> Node:
        text = self.next.text
        self.position += 1
        plain_part, _, repeated = text.partition("r")
        value = Fraction(plain_part.rstrip(".") or "0")
        if repeated:
            places = len(plain_part.partition(".")[2])
            if len(repeated) > MAX_DECIMALS_REPEATED or "." not in plain_part:
                raise Unreadable("a line over digits that are no decimals")
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10**places)
        return number(value)

    def _based(self) -> Value:
        """Digits with their base."""
        digits = self.next.text
        self.position += 1
        found = based(digits, self.subscripted("").args[0][1:])
        if found is None:
            raise Unreadable("digits that are not of their base")
        return found

    def words(self) -> Node:
        """Words that name something: the left side of an equation, or an answer in words."""
        found = []
        while self.next.kind == "words":
            found.append(self.next.text)
            self.position += 1
        return Node("word", (" ".join(found),))

    def _letters(self) -> Node:
        """One letter, with its subscript; the first letter of a run, or a function applied."""
        text = self.next.text
        if len(text) > 1:
            self.tokens[self.position] = Token("letters", text[1:])
        else:
            self.position += 1
        node = symbol(text[0])
        if len(text) == 1 and self.at("_"):
            node = self.subscripted(text)
        if len(text) == 1 and text in APPLIED and self.at("(") and not self.next.spaced:
            arguments = brackets.group_items(self)
            return Node("call", (text, *[plain(item) for item in arguments]))
        return node

    def subscripted(self, name: str) -> Node:
        self.expect("_")
        parts = []
        if self.accept("{"):
            while not self.accept("}"):
                if self.next is END:
                    raise Unreadable("a subscript that does not end")
                parts.append(self.next.text)
                self.position += 1
        else:
            parts.append(self.next.text)
            self.position += 1
        return symbol(f"{name}_{''.join(parts)}")

    def _command(self) -> Node | Value:
        name = self.next.text
        if name in ("{", "langle", "lfloor", "lceil"):
            return brackets.bracketed(self)
        self.position += 1
        if name in FUNCTIONS or name == "arccot":
            return self._function(name)
        if name == "pi":
            return symbol("pi")
        if name == "infty":
            return INFINITY
        if name in GREEK or name.startswith("bold "):
            return self.subscripted(name) if self.at("_") else symbol(name)
        if name in ("frac", "binom"):
            head = "div" if name == "frac" else "binom"
            return Node(head, (self.argument(), self.argument()))
        if name == "sqrt":
            return self._root()
        return brackets.named(self, name)

    def _root(self) -> Node:
        index = number(2)
        if self.accept("["):
            index = plain(self.sum())
            self.expect("]")
        return Node("root", (index, self.argument()))

    def _function(self, name: str) -> Node:
        base, power = (), None
        self.in_function += 1
        while self.at("_", "^") and not self.is_degree():
            if self.accept("_"):
                base = (self.argument(),)
            else:
                self.position += 1
                power = self.exponent()
        if self.at("(", "["):
            inner = tuple(plain(item) for item in brackets.group_items(self))
            if self.is_degree():
                self.skip_degree()
                inner = (Node("degree", inner),)
        else:
            inner = (self._function_argument(),)
        self.in_function -= 1
        if power == number(-1) and name in ("sin", "cos", "tan"):
            return Node("call", (f"arc{name}", *inner))
        call = Node("call", (name, *inner, *base))
        return call if power is None else Node("pow", (call, power))

    def _function_argument(self) -> Node:
        """2x of `sin 2x`: factors up to the next function."""
        factors = [plain(self.factor())]
        while self._starts_factor() and self.next.text not in FUNCTIONS and not self.at("(", "["):
            factors.append(plain(self.factor()))
        return product_of(factors)


def plain(value: Node | Value) -> Node:
    """The value as a part of an expression."""
    if isinstance(value, Node):
        if value.head == "word":
            raise Unreadable("words within an expression")
        return value
    if isinstance(value, Expression):
        return value.node
    raise Unreadable(f"a {value.kind} within an expression")


def based(digits: str, name: str) -> Based | None:
    """Digits in the base of that name (`8`, `eight`), or None if they are not."""
    base = int(name) if name.isdigit() and len(name) < 3 else BASES.get(name, 0)
    digits = digits.upper().lstrip("0") or "0"
    known = 2 <= base <= MAX_BASE and digits.isalnum() and any(d.isdigit() for d in digits)
    return Based(digits, base) if known and all(int(d, 36) < base for d in digits) else None


def product_of(factors: list[Node]) -> Node:
    r"""A product; 1.5 \times 10^3 is one number."""
    if len(factors) == 2 and factors[0].head == "num" and factors[1].head == "pow":
        base, exponent = factors[1].args
        size = exponent.args[0] if exponent.head == "neg" else exponent
        ten = base == number(10) and isinstance(size, Node) and size.head == "num"
        if ten and size.args[0].denominator == 1 and abs(size.args[0]) <= 400:
            power = -size.args[0] if exponent.head == "neg" else size.args[0]
            return Node("scaled", (factors[0], Fraction(10) ** int(power)))
    return combined("mul", factors)
