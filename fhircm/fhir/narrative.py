"""What a narrative may hold: basic formatting, and nothing that runs, loads or asks.

https://hl7.org/fhir/R4/narrative.html#xhtml (txt-1)
"""

from __future__ import annotations

from html.parser import HTMLParser

# https://hl7.org/fhir/R4/narrative.html#rules: chapters 7 to 11 and 15 of HTML 4.0, links, images and style.
_TAGS = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "address",
        "b",
        "big",
        "blockquote",
        "br",
        "caption",
        "center",
        "cite",
        "code",
        "col",
        "colgroup",
        "dd",
        "del",
        "dfn",
        "dir",
        "div",
        "dl",
        "dt",
        "em",
        "font",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "i",
        "img",
        "ins",
        "kbd",
        "li",
        "map",
        "ol",
        "p",
        "pre",
        "q",
        "s",
        "samp",
        "small",
        "span",
        "strike",
        "strong",
        "sub",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "tt",
        "u",
        "ul",
        "var",
        "area",
    ]
)
_NEVER = frozenset({"srcdoc", "formaction", "action", "background"})
_LINKS = frozenset({"href", "src", "cite", "longdesc"})


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: str | None = None
        self.first: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.first = self.first or tag
        if tag not in _TAGS:
            self.wrong = self.wrong or f"holds the element <{tag[:20]}>, which a narrative may not"
        for name, value in attrs:
            target = "".join((value or "").split()).lower()
            if name.startswith("on") or name in _NEVER:
                self.wrong = self.wrong or f"holds the attribute '{name[:20]}', which a narrative may not"
            elif name in _LINKS and target.startswith(("javascript:", "vbscript:", "data:text")):
                self.wrong = self.wrong or "holds a link that runs a script"

    def handle_decl(self, decl: str) -> None:
        self.wrong = self.wrong or "holds a declaration"

    def handle_pi(self, data: str) -> None:
        self.wrong = self.wrong or "holds a processing instruction"

    def unknown_decl(self, data: str) -> None:
        self.wrong = self.wrong or "holds a declaration"


def narrative_issue(div: str) -> str | None:
    """What is wrong with the div of a narrative, or None."""
    reader = _Reader()
    reader.feed(div)
    reader.close()
    if reader.wrong:
        return reader.wrong
    if reader.first != "div" or not div.lstrip().startswith("<"):
        return "must be one <div> element"
    return None
