"""Full text by the means of the database at hand: an FTS5 index on SQLite, a GIN index of tsvector on PostgreSQL.

https://hl7.org/fhir/R4/search.html#content, https://www.sqlite.org/fts5.html and https://www.postgresql.org/docs/current/textsearch.html

Both databases get the same words, cut and folded by fhir/words.py, and neither parses anything itself: the tokenizer of SQLite ends words
at what they never hold, and PostgreSQL casts. So they find the same. Neither index knows where words stand: phrases are looked for in the
words themselves, among the few texts that hold all their words. Each text begins with a mark of its parameter and type,
which keeps the texts of all others out while the index is read.
"""

from __future__ import annotations

from fhircm.fhir.conditions import WordsTest
from fhircm.store.search_tests import Argument

# The index follows the table search_text by itself, so that its rows are written and deleted like those of every search table.
INDEX_OF_SQLITE = (
    "CREATE VIRTUAL TABLE search_text_index USING fts5(words, content='search_text', content_rowid='key',"
    " tokenize=\"ascii tokenchars '@'\", detail=none, columnsize=0)",
    "CREATE TRIGGER search_text_written AFTER INSERT ON search_text BEGIN"
    " INSERT INTO search_text_index (rowid, words) VALUES (new.key, new.words); END",
    "CREATE TRIGGER search_text_deleted AFTER DELETE ON search_text BEGIN"
    " INSERT INTO search_text_index (search_text_index, rowid, words) VALUES ('delete', old.key, old.words); END",
)


def mark(param: int) -> str:
    """The first word of each text: @ stands in no word of a resource."""
    return f"@{param & 0xFFFFFFFF}"


def words_test(test: WordsTest, a: str, param: int, dialect: str, argument: Argument) -> str:
    """The test on the row of search_text with alias `a` that the index answers, safe to stand beside AND."""
    found = _in_postgresql if dialect == "postgresql" else _in_sqlite
    tests = [found(a, (mark(param), *test.words), test.starts, argument)]
    tests += [_stands(phrase, a, argument) for phrase in test.phrases]
    return " AND ".join(tests)


def words_stand(test: WordsTest, a: str, argument: Argument) -> str:
    """The same test without the index: for the few rows that one resource has."""
    parts = [*(f" {word} " for word in test.words), *(f" {start}" for start in test.starts), *test.phrases]
    return " AND ".join(_stands(part, a, argument) for part in parts)


def _stands(part: str, a: str, argument: Argument) -> str:
    """No word holds a % or _, so nothing is to be escaped."""
    return f"' ' || {a}.words || ' ' LIKE {argument(f'%{part}%')}"


def _in_sqlite(a: str, words: tuple[str, ...], starts: tuple[str, ...], argument: Argument) -> str:
    asked = " AND ".join([*(f'"{word}"' for word in words), *(f'"{start}" *' for start in starts)])
    return f"{a}.key IN (SELECT rowid FROM search_text_index WHERE search_text_index MATCH {argument(asked)})"


def _in_postgresql(a: str, words: tuple[str, ...], starts: tuple[str, ...], argument: Argument) -> str:
    asked = " & ".join([*(f"'{word}'" for word in words), *(f"'{start}':*" for start in starts)])
    return f"{a}.words::tsvector @@ {argument(asked)}::text::tsquery"
