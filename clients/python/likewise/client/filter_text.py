r"""Filters as text, for the command line: `price < 50 and colour in (red, pink)`.

    filter     = conjunction { "or" conjunction }
    conjunction = term { "and" term }
    term       = "not" term | "(" filter ")" | predicate
    predicate  = name ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "contains") literal
               | name ["not"] "in" "(" [literal { "," literal }] ")"
               | name ["not"] "exists"
    name       = letter { letter | digit | "_" }
    literal    = number | "true" | "false" | date or time (2024-05-31, 2024-05-31T12:00:00+02:00)
               | "text" | 'text' (with \" \' \\) | bare word

Keywords in any case. A bare word is text; quote text that looks like something else ("50", "true", "and"). The text is
only ever read, never evaluated.
"""

import re
from datetime import date, datetime
from typing import Final

from likewise.client.errors import InvalidArgument
from likewise.client.filters import F, Filter, FilterValue, comparison
from likewise.v1 import common_pb2 as pb

_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<operator>==|!=|<=|>=|<|>|=)
    | (?P<mark>[(),])
    | (?P<word>[^\s"'()<>=!,]+)
    )""",
    re.VERBOSE,
)
_NAME: Final = re.compile(r"[A-Za-z]\w*", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d+", re.ASCII)
_DOUBLE: Final = re.compile(r"[+-]?(\d+\.\d*|\.?\d+)([eE][+-]?\d+)?", re.ASCII)
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.ASCII)
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "exists", "contains"})
_MAX_DEPTH: Final = 16  # of the tree, as common.proto has it

_OPERATORS: Final = {
    "=": pb.COMPARISON_OPERATOR_EQUAL,
    "==": pb.COMPARISON_OPERATOR_EQUAL,
    "!=": pb.COMPARISON_OPERATOR_NOT_EQUAL,
    "<": pb.COMPARISON_OPERATOR_LESS,
    "<=": pb.COMPARISON_OPERATOR_LESS_OR_EQUAL,
    ">": pb.COMPARISON_OPERATOR_GREATER,
    ">=": pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL,
}


def parse_filter(text: str) -> Filter:
    """The filter that the text says.

    Raises:
        InvalidArgument: If it does not follow the grammar of this module; the message shows the place.
    """
    parser = _Parser(text)
    parsed = parser.alternatives(0)
    if parser.peek() is not None:
        raise parser.error("expected 'and', 'or' or the end")
    return parsed


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        self._next = 0
        place, end = 0, len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place)
            if match is None or match.lastgroup is None:
                raise self._failure("cannot read this", place)
            self._tokens.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
            place = match.end()

    def alternatives(self, depth: int) -> Filter:
        found = self._conjunction(depth)
        while self._take_keyword("or"):
            found = found | self._conjunction(depth)
        return found

    def peek(self) -> tuple[str, str, int] | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def error(self, wanted: str) -> InvalidArgument:
        token = self.peek()
        return self._failure(wanted, token[2] if token else len(self._text))

    def _failure(self, wanted: str, place: int) -> InvalidArgument:
        rest = self._text[place : place + 30].strip()
        return InvalidArgument(
            f"filter {self._text!r}, character {place + 1}: {wanted}, got {rest!r}" if rest else
            f"filter {self._text!r}: {wanted}, got the end",
            reason="FILTER_SYNTAX",
            field="where",
        )  # fmt: skip

    def _conjunction(self, depth: int) -> Filter:
        found = self._term(depth)
        while self._take_keyword("and"):
            found = found & self._term(depth)
        return found

    def _term(self, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            raise self.error(f"a filter may be at most {_MAX_DEPTH} deep")
        if self._take_keyword("not"):
            return ~self._term(depth + 1)
        if self._take("mark", "("):
            inner = self.alternatives(depth + 1)
            self._expect(")")
            return inner
        return self._predicate()

    def _predicate(self) -> Filter:
        name = self._name()
        token = self.peek()
        if token and token[0] == "operator":
            self._next += 1
            return comparison(name, _OPERATORS[token[1]], self._literal())
        if self._take_keyword("contains"):
            return F[name].contains(str(self._literal()))
        negated = self._take_keyword("not")
        if self._take_keyword("exists"):
            found = F[name].exists()
        elif self._take_keyword("in"):
            found = F[name].isin(self._members())
        else:
            raise self.error("expected 'in' or 'exists'" if negated else "expected an operator, 'in' or 'exists'")
        return ~found if negated else found

    def _members(self) -> list[FilterValue]:
        self._expect("(")
        members: list[FilterValue] = []
        if self._take("mark", ")"):
            return members
        members.append(self._literal())
        while self._take("mark", ","):
            members.append(self._literal())
        self._expect(")")
        return members

    def _name(self) -> str:
        token = self.peek()
        if token is None or token[0] != "word" or not _NAME.fullmatch(token[1]) or token[1].lower() in _KEYWORDS:
            raise self.error("expected the name of an attribute")
        self._next += 1
        return token[1]

    def _literal(self) -> FilterValue:
        token = self.peek()
        if token is None or token[0] not in ("word", "quoted"):
            raise self.error("expected a value")
        kind, text, _ = token
        if kind == "quoted":
            self._next += 1
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        if text.lower() in _KEYWORDS:
            raise self.error("expected a value (quote a word that is also a keyword)")
        value = self._bare(text)
        self._next += 1
        return value

    def _bare(self, text: str) -> FilterValue:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DOUBLE.fullmatch(text):
            return float(text)
        if _MOMENT.fullmatch(text):
            try:
                return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)
            except ValueError:
                raise self.error("expected a date or time that exists") from None
        return text

    def _take(self, kind: str, text: str) -> bool:
        token = self.peek()
        if token and token[0] == kind and token[1] == text:
            self._next += 1
            return True
        return False

    def _take_keyword(self, word: str) -> bool:
        token = self.peek()
        if token and token[0] == "word" and token[1].lower() == word:
            self._next += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._take("mark", mark):
            raise self.error(f"expected {mark!r}")
