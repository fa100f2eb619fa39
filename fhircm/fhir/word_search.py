"""What `_text` and `_content` are asked: words that all stand in the text, OR, NOT, "phrases" and beginnings*.

https://hl7.org/fhir/R4/search.html#content leaves the language to the server. Here: words side by side (or with AND) are all wanted; OR, or a
comma, stands between alternatives and binds less; NOT or a leading - excludes; brackets group; "several words" stand in this order in one
text; a * behind a word takes it as a beginning. A word of several parts (J45.909) is the phrase of them.
"""

from __future__ import annotations

import re

from fhircm.fhir.conditions import LENGTH_LIMIT, Condition, InvalidValue, Matches, WordsTest, all_of, any_of, opposite
from fhircm.fhir.words import words_of

WORDS_LIMIT = 50  # words in one search
DEPTH_LIMIT = 10  # of brackets and of NOT NOT

_TOKEN = re.compile(r'\s*(?:(\()|(\))|(,)|"([^"]*)"(\*?)|(-)(?=[^\s),])|([^\s()",]+))')
_ESCAPED = re.compile(r"\\[,|$\\]")


def word_search(type: str, parameter: str, text: str) -> Condition:
    """The condition that `_text=…` or `_content=…` asks. Raises InvalidValue, which never tells the words."""
    if len(text) > LENGTH_LIMIT:
        raise InvalidValue(f"The value of the search parameter '{parameter}' is longer than {LENGTH_LIMIT} characters")
    return _Parser(type, parameter, _ESCAPED.sub(" ", text)).whole()


class _Parser:
    """Recursive descent over the tokens: (kind, text, whether a * follows)."""

    def __init__(self, type: str, parameter: str, text: str) -> None:
        self.type, self.parameter = type, parameter
        self.tokens: list[tuple[str, str, bool]] = []
        self.at = self.words = 0
        at, text = 0, text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self.wrong("a quotation mark has no partner")
            self.tokens.append(_token(found))
            at = found.end()

    def wrong(self, why: str) -> InvalidValue:
        form = 'words, with AND, OR, NOT, (brackets), "phrases" and beginnings*'
        return InvalidValue(f"The search parameter '{self.parameter}' takes {form}: {why}")

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def whole(self) -> Condition:
        condition = self.alternatives(0)
        if self.peek():
            raise self.wrong("a bracket has no partner")
        return condition

    def alternatives(self, depth: int) -> Condition:
        found = [self.together(depth)]
        while self.peek() == "or":
            self.at += 1
            found.append(self.together(depth))
        return any_of(found)

    def together(self, depth: int) -> Condition:
        found = [self.one(depth)]
        while self.peek() not in ("", "or", ")"):
            if self.peek() == "and":
                self.at += 1
            found.append(self.one(depth))
        return self.merged(found)

    def merged(self, found: list[Condition]) -> Condition:
        """Words that all must be there are asked as one: the index then goes through the rarest."""
        wanted = [one for one in found if isinstance(one, Matches) and not one.negated]
        plain = [test for one in wanted for test in one.tests if isinstance(test, WordsTest)]
        others = [one for one in found if one not in wanted]
        if plain:
            words, starts, phrases = (
                tuple(dict.fromkeys(word for test in plain for word in getattr(test, name)))
                for name in ("words", "starts", "phrases")
            )
            others = [self.matches(WordsTest(words, starts, phrases)), *others]
        return all_of(others)

    def matches(self, test: WordsTest) -> Matches:
        return Matches(self.type, self.parameter, (test,))

    def one(self, depth: int) -> Condition:
        if depth > DEPTH_LIMIT:
            raise self.wrong(f"they are nested deeper than {DEPTH_LIMIT} levels")
        kind, text, start = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", False)
        self.at += 1
        match kind:
            case "not":
                return opposite(self.one(depth + 1))
            case "(":
                condition = self.alternatives(depth + 1)
                if self.peek() != ")":
                    raise self.wrong("a bracket has no partner")
                self.at += 1
                return condition
            case "words":
                return self.phrase(text, start)
        raise self.wrong("a word is missing")

    def phrase(self, text: str, start: bool) -> Condition:
        words = words_of(text)
        self.words += len(words)
        if not words:
            raise self.wrong("one of them has neither letters nor digits")
        if self.words > WORDS_LIMIT:
            raise self.wrong(f"they are more than {WORDS_LIMIT}")
        whole, begun = (tuple(words[:-1]), (words[-1],)) if start else (tuple(words), ())
        phrases = (f" {' '.join(words)}" + ("" if start else " "),) if len(words) > 1 else ()
        return self.matches(WordsTest(whole, begun, phrases))


def _token(found: re.Match[str]) -> tuple[str, str, bool]:
    opened, closed, comma, phrase, begun, minus, word = found.groups()
    if phrase is not None:
        return "words", phrase, bool(begun)
    if word is not None:
        if word.lower() in ("and", "or", "not"):
            return word.lower(), "", False
        return "words", word, word.endswith("*")
    if comma or minus:
        return ("or" if comma else "not"), "", False
    return opened or closed, "", False
