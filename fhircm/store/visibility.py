"""What a viewer may see, as SQL: by care relationship, consent and security label. docs/explanation/access.md

A resource is seen when there is a reason, and nothing against it. Reasons: it belongs to no patient; every patient that it names is the
viewer's own or one with whom it has a relationship that shares the record; it is shared itself, or is about something that is; it
names no patient, but the viewer. Against it: a denial of one of its patients that no exception within the same consent lifts; a
security label that is closed to the viewer, unless a consent permits just that or the record is the viewer's own. All is read from rows that
are written in the transaction of the resource that says so, so an end takes effect at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.belonging import named_by, when
from fhircm.fhir.care_relationship import kinds
from fhircm.fhir.definitions import definitions, param_key
from fhircm.fhir.extract import searchable
from fhircm.store.search_tests import Listed

if TYPE_CHECKING:
    from fhircm.store.search_sql import Builder

NONE = Listed()
MANY = 1001  # relationships: more are not counted
_FEW = 1000
_ANY = "*"
_CODED_BY = ("code", "category", "type")  # parameters by which Consent.provision.code recognises what is in a resource


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks. `known_as`: the references by which relationships name it; `own`: ids of Patients that are itself, or for whom it acts.

    `closed`: security labels that it does not see without a consent. `grace`: how long a relationship is still good after its end, in
    microseconds. `relationships`: how many it has with patients, at most MANY.
    """

    known_as: Listed
    own: Listed = NONE
    purpose: str = "TREAT"
    closed: Listed = NONE
    grace: int = 0
    relationships: int = field(default=MANY, compare=False)

    @property
    def few(self) -> bool:
        """Whether a search may begin with its patients."""
        return self.relationships <= _FEW


@cache
def _types(list: str) -> frozenset[str]:
    tree = read_yaml(folder("profiles") / "visibility" / "types.yaml")
    return frozenset(tree[list])


def is_open(type: str) -> bool:
    """Whether all of a type is seen by everybody who may search it."""
    return type in _types("open")


def visible(builder: Builder, type: str, key: str, own: str | None) -> str:
    """A test on a resource key that the viewer may see the resource; `own`: the alias of its row in `resource`, where there is one."""
    return "1 = 1" if is_open(type) else _written(builder, type, "test", key, own)


def visible_of_any_type(builder: Builder, own: str) -> str:
    """The same of a row of `resource` (alias `own`) of any type that is not open: one text, where one for each type would be long."""
    return _written(builder, _ANY, "test", f"{own}.key", own)


def plainly_visible(builder: Builder, type: str, key: str, own: str) -> str:
    """A short test that most of what is visible passes: its patients' records are open, none of their consents denies the viewer anything, and no label is closed."""
    return "1 = 1" if is_open(type) else _written(builder, type, "plain", key, own)


def begun_with(builder: Builder, type: str) -> str:
    """A query for keys (`resource_key`) among which are all that the viewer may see of a type: beginning with what it has."""
    return _written(builder, type, "candidates", "", None)


def _written(builder: Builder, type: str, what: str, key: str, own: str | None) -> str:
    """The text of a part, with this builder's arguments and aliases in it."""
    within = builder.within
    assert within is not None and within.viewer is not None
    viewer = within.viewer
    shape = _Shape(builder.dialect, bool(viewer.own), bool(viewer.closed), bool(viewer.grace))
    values: dict[str, Any] = {
        "known": viewer.known_as,
        "own": viewer.own,
        "closed": viewer.closed,
        "purpose": f"|{viewer.purpose}|",
        "now": within.now,
        "lately": within.now - viewer.grace,
    }
    pieces = list(_pieces(shape, type, what, own is not None))
    filled = {"key": key, "resource": own or "", "alias": builder.alias()}
    for mark in dict.fromkeys(pieces[1::2]):
        name, _, rows = mark.partition(" ")
        if rows:
            filled[mark] = builder.shared_argument(mark, builder.as_rows(values[name]), PLANNED_ALIKE["rows"])
        elif name in values:
            value = values[name]
            kind = "list" if isinstance(value, Listed) else "text" if isinstance(value, str) else "number"
            filled[mark] = builder.shared_argument(mark, value, PLANNED_ALIKE[kind])
    pieces[1::2] = [filled[mark] for mark in pieces[1::2]]
    return "".join(pieces)


# What PostgreSQL cannot look into when it plans: else it would plan each of these statements anew, which takes longer than to carry it out.
PLANNED_ALIKE = {
    "list": "= ANY((SELECT {}::text[])::text[])",
    "rows": "(SELECT {}::text[])",
    "text": "(SELECT {}::text)",
    "number": "(SELECT {}::bigint)",
}


class _Shape(NamedTuple):
    """What a text depends on beside the type: the rest is filled in."""

    dialect: str
    own: bool
    closed: bool
    grace: bool


_MARK = re.compile("<((?:known|own|closed)(?: rows)?|purpose|now|lately|key|resource|alias)>")


@lru_cache(maxsize=4096)
def _pieces(shape: _Shape, type: str, what: str, has_row: bool) -> tuple[str, ...]:
    """A text cut at its marks: every second piece is the name of one."""
    visibility = _Visibility(shape, type, has_row)
    text = {"test": visibility.test, "plain": visibility.plain, "candidates": visibility.candidates}[what]()
    return tuple(_MARK.split(text))


class _Visibility:
    """The parts of one test, with marks between < and > where arguments, the key and aliases come.

    The type is one, or `*`: then the row of the resource tells which.
    """

    known, now, lately, key = "<known>", "<now>", "<lately>", "<key>"

    def __init__(self, shape: _Shape, type: str, has_row: bool) -> None:
        self.shape, self.type, self.own = shape, type, "<resource>" if has_row else None
        self.any = type == _ANY
        self.type_sql = "<resource>.type" if self.any else f"'{type}'"
        self.types = sorted(one for one in definitions().resource_types if not is_open(one)) if self.any else [type]
        recorded = [one for one in self.types if one not in _types("own")]
        self.opening = [kind for kind in kinds() if kind.shares_record and any(map(kind.opens, recorded))]
        self.sharing = [kind for kind in kinds() if not kind.shares_record]
        self.naming = [kind for kind in kinds() if kind.shares_named]
        self.aliases = 0

    def alias(self) -> str:
        self.aliases += 1
        return f"<alias>_{self.aliases}"

    def exists(self, rows: str) -> str:
        """As Builder.exists: asked of one candidate after the other."""
        return f"EXISTS ({rows}{' OFFSET 0' if self.shape.dialect == 'postgresql' else ''})"

    def rows(self, name: str, alias: str) -> str:
        """A list as rows with one column, `value`, for a FROM clause."""
        if self.shape.dialect == "postgresql":
            return f"unnest(<{name} rows>) {alias} (value)"
        return f"json_each(<{name} rows>) {alias}"

    def _among_own(self, column: str) -> str:
        return f"{column} <own>" if self.shape.own else "1 = 0"

    # --- reasons

    def test(self) -> str:
        reasons = " OR ".join(self._reasons())
        against = [self._denied()]
        if self.shape.closed:
            against.append(self._closed())
        return f"(({reasons}) AND {' AND '.join(f'NOT {one}' for one in against)})"

    def plain(self) -> str:
        a, c, s = self.alias(), self.alias(), self.alias()
        speaks = f"NOT {c}.permit AND {c}.low <= {self.now} AND {self.now} < {c}.high AND {self._about_viewer(c)}"
        against = [f"NOT {self._of_its_patients(c, speaks)}"]
        if self.shape.closed:
            labels = f"SELECT 1 FROM search_token {s} WHERE {s}.resource_key = {self.key} AND {s}.param IN ({self._token_params(('_security',))})"
            against.append(f"NOT {self.exists(f'{labels} AND {s}.code <closed>')}")
        if self.type == "Patient":
            return f"({self._opened(self._id())} AND {' AND '.join(against)})"
        patients = f"SELECT 1 FROM search_reference {a} WHERE {a}.resource_key = {self.key} AND {a}.target_type = 'Patient'"
        shut = self.exists(f"{patients} AND NOT {self._opened(f'{a}.target_id')}")
        return f"({self.exists(patients)} AND NOT {shut} AND {' AND '.join(against)})"

    def _of_patient_or_not(self, of_patient: str, of_other: str) -> str:
        """What is tested of a Patient, and what of a resource of another type."""
        if self.any:
            return f"(({self.type_sql} = 'Patient' AND {of_patient}) OR ({self.type_sql} <> 'Patient' AND {of_other}))"
        return of_patient if self.type == "Patient" else of_other

    def _reasons(self) -> list[str]:
        a = self.alias()
        patients = f"SELECT 1 FROM search_reference {a} WHERE {a}.resource_key = {self.key} AND {a}.target_type = 'Patient'"
        some = self.exists(patients)
        shut = self.exists(f"{patients} AND NOT {self._opened(f'{a}.target_id')}")
        of_other = f"(({some} AND NOT {shut}) OR (NOT {some} AND {self._names_viewer()}) OR {self._about()})"
        return [self._of_patient_or_not(self._opened(self._id()), of_other), self._shared()]

    def _opened(self, patient: str) -> str:
        """That the record of a patient is open."""
        ways = [self._among_own(patient)] if self.shape.own else []
        if self.opening:
            g = self.alias()
            ways.append(
                self.exists(
                    f"SELECT 1 FROM care_relationship {g} WHERE {g}.type = 'Patient' AND {g}.id = {patient} AND {self._good(g, True)}"
                )
            )
        return f"({' OR '.join(ways) or '1 = 0'})"

    def _good(self, g: str, whole: bool, *, around: bool = False) -> str:
        """That a relationship is the viewer's, of a kind that opens or shares (`around`: also what is around it), and holds at this time."""
        fitting = self.opening if whole else self.naming if around else self.sharing
        listed = ", ".join(str(kind.key) for kind in fitting) or "NULL"
        if whole and self.any:
            part = [kind for kind in self.opening if kind.types is not None]
            tests = [f"{self.type_sql} NOT IN ({_quoted(_types('own'))})"]
            tests += [f"({g}.param <> {kind.key} OR {self.type_sql} IN ({_quoted(kind.types or ())}))" for kind in part]
            listed += f") AND ({' AND '.join(tests)}"
        sharp = [kind.key for kind in kinds() if kind.emergency and whole]
        ends = f"{g}.high > {self.lately}"
        if sharp and self.shape.grace:  # what was given for so long ends then
            ends += f" AND ({g}.param NOT IN ({', '.join(map(str, sharp))}) OR {g}.high > {self.now})"
        is_whole = f"{g}.whole" if whole else f"NOT {g}.whole"
        return f"{is_whole} AND {g}.grantee {self.known} AND {g}.param IN ({listed}) AND {g}.low <= {self.now} AND {ends}"

    def _shared(self) -> str:
        g = self.alias()
        return self.exists(
            f"SELECT 1 FROM care_relationship {g} WHERE {g}.type = {self.type_sql} AND {g}.id = {self._id()}"
            f" AND {self._good(g, False)}"
        )

    def _about(self) -> str:
        x, g = self.alias(), self.alias()
        return self.exists(
            f"SELECT 1 FROM search_reference {x} JOIN care_relationship {g} ON {g}.type = {x}.target_type AND {g}.id = {x}.target_id"
            f" WHERE {x}.resource_key = {self.key} AND {x}.target_type IN ({_quoted(_types('about'))})"
            f" AND {self._good(g, False, around=True)}"
        )

    def _names_viewer(self) -> str:
        x = self.alias()
        return self.exists(
            f"SELECT 1 FROM search_reference {x} WHERE {x}.resource_key = {self.key}"
            f" AND {x}.target_type || '/' || {x}.target_id {self.known}"
        )

    def _id(self) -> str:
        return f"{self.own}.id" if self.own else f"(SELECT r.id FROM resource r WHERE r.key = {self.key})"

    # --- what stands against it

    def _denied(self) -> str:
        """That a consent of one of its patients denies it."""
        c, d = self.alias(), self.alias()
        lifted = self.exists(
            f"SELECT 1 FROM consent_rule {d} WHERE {d}.patient_id = {c}.patient_id AND {d}.resource_key = {c}.resource_key AND {d}.permit"
            f" AND {self._under(c, d)} AND {self._applies(d)}"
        )
        where = f"NOT {c}.permit AND {self._applies(c)} AND NOT {lifted} AND NOT {self._emergency(f'{c}.patient_id')}"
        if self.shape.own:
            where += f" AND NOT {self._among_own(f'{c}.patient_id')}"
        return self._of_its_patients(c, where)

    def _under(self, c: str, d: str) -> str:
        return f"substr({d}.path, 1, length({c}.path) + 1) = {c}.path || '.'"

    def _of_its_patients(self, c: str, where: str) -> str:
        """That there is such a rule of a patient that the resource names."""
        x = self.alias()
        return self._of_patient_or_not(
            self.exists(f"SELECT 1 FROM consent_rule {c} WHERE {c}.patient_id = {self._id()} AND {where}"),
            self.exists(
                f"SELECT 1 FROM search_reference {x} JOIN consent_rule {c} ON {c}.patient_id = {x}.target_id"
                f" WHERE {x}.resource_key = {self.key} AND {x}.target_type = 'Patient' AND {where}"
            ),
        )

    def _applies(self, c: str) -> str:
        """That a rule is about this viewer, now, and about the resource."""
        tests = [f"{c}.low <= {self.now} AND {self.now} < {c}.high", self._about_viewer(c)]
        own_class = self._in(f"{c}.classes", _barred(self.type_sql))
        tests.append(f"({c}.classes = '' OR {own_class})")
        tests.append(f"({c}.labels = '' OR {self._has_token(c, 'labels', ('_security',))})")
        tests.append(f"({c}.codes = '' OR {self._has_token(c, 'codes', _CODED_BY)})")
        things = _barred(f"{self.type_sql} || '/' || {self._id()}")
        x = self.alias()
        name = _barred(f"'~' || {x}.target_type || '/' || {x}.target_id")
        refers = self.exists(
            f"SELECT 1 FROM search_reference {x} WHERE {x}.resource_key = {self.key} AND {self._in(f'{c}.things', name)}"
        )
        tests.append(f"({c}.things = '' OR {self._in(f'{c}.things', things)} OR {refers})")
        if dated := [str(param) for type in self.types if (param := _dated(type)) is not None]:
            s = self.alias()
            span = f"SELECT 1 FROM search_date {s} WHERE {s}.resource_key = {self.key} AND {s}.param IN ({', '.join(dated)})"
            inside = self.exists(f"{span} AND {s}.low < {c}.data_high AND {s}.high > {c}.data_low")
            tests.append(f"({inside} OR NOT {self.exists(span)})")
        return " AND ".join(tests)

    def _about_viewer(self, c: str) -> str:
        k = self.alias()
        source = self.rows("known", k)
        named = self.exists(f"SELECT 1 FROM {source} WHERE {self._in(f'{c}.actors', _barred(f'{k}.value'))}")
        return f"({c}.actors = '' OR {named}) AND ({c}.purposes = '' OR {self._in(f'{c}.purposes', '<purpose>')})"

    def _in(self, whole: str, part: str) -> str:
        return f"strpos({whole}, {part}) > 0" if self.shape.dialect == "postgresql" else f"instr({whole}, {part}) > 0"

    def _has_token(self, c: str, column: str, codes: tuple[str, ...]) -> str:
        params = self._token_params(codes)
        if not params:
            return "1 = 0"
        s = self.alias()
        ways = [_barred(f"{s}.code")]
        if column == "codes":
            ways = [_barred(f"{s}.system || '#' || lower({s}.code)"), _barred(f"'#' || lower({s}.code)")]
        either = " OR ".join(self._in(f"{c}.{column}", way) for way in ways)
        return self.exists(
            f"SELECT 1 FROM search_token {s} WHERE {s}.resource_key = {self.key} AND {s}.param IN ({params}) AND ({either})"
        )

    def _token_params(self, codes: tuple[str, ...]) -> str:
        """The parameters of these codes, as far as they are tokens, of every type that is meant."""
        return ", ".join(
            str(param_key(type, code))
            for type in self.types
            for code in codes
            if code in searchable(type).extractors and searchable(type).extractors[code].definition.type == "token"
        )

    def _closed(self) -> str:
        """That it bears a label that is closed to the viewer, and nothing opens it."""
        s, c = self.alias(), self.alias()
        params = self._token_params(("_security",))
        permitted = self._of_its_patients(
            c, f"{c}.permit AND {self._in(f'{c}.labels', _barred(f'{s}.code'))} AND {self._applies(c)}"
        )
        labelled = self.exists(
            f"SELECT 1 FROM search_token {s} WHERE {s}.resource_key = {self.key} AND {s}.param IN ({params})"
            f" AND {s}.code <closed> AND NOT {permitted}"
        )
        x = self.alias()
        named = f"SELECT 1 FROM search_reference {x} WHERE {x}.resource_key = {self.key} AND {x}.target_type = 'Patient'"
        broken = self._of_patient_or_not(
            self._emergency(self._id()), self.exists(f"{named} AND {self._emergency(f'{x}.target_id')}")
        )
        return f"({labelled} AND NOT ({self._names_viewer()} OR {broken}))"

    def _emergency(self, patient: str) -> str:
        """That the viewer has broken the glass for a patient."""
        listed = ", ".join(str(kind.key) for kind in kinds() if kind.emergency)
        g = self.alias()
        return self.exists(
            f"SELECT 1 FROM care_relationship {g} WHERE {g}.type = 'Patient' AND {g}.id = {patient} AND {g}.whole"
            f" AND {g}.grantee {self.known} AND {g}.param IN ({listed}) AND {g}.low <= {self.now} AND {g}.high > {self.now}"
        )

    # --- where to begin

    def candidates(self) -> str:
        type = f"'{self.type}'"
        g, r, x = self.alias(), self.alias(), self.alias()
        shared = (
            f"SELECT {r}.key AS resource_key FROM care_relationship {g} CROSS JOIN resource {r} WHERE {self._good(g, False)}"
            f" AND {g}.type = {type} AND {r}.type = {g}.type AND {r}.id = {g}.id AND NOT {r}.deleted"
        )
        h, y = self.alias(), self.alias()
        about = (
            f"SELECT {y}.resource_key FROM care_relationship {h} CROSS JOIN search_reference {y} CROSS JOIN resource {x}"
            f" WHERE {self._good(h, False, around=True)} AND {h}.type IN ({_quoted(_types('about'))})"
            f" AND {y}.param = 0 AND {y}.target_id = {h}.id AND {y}.target_type = {h}.type AND {x}.key = {y}.resource_key AND {x}.type = {type}"
        )
        return " UNION ".join([*self._records(type), shared, about, self._naming(type)])

    def _records(self, type: str) -> list[str]:
        """Keys of what is in the records that are open."""
        found = []
        params = ", ".join(str(param_key(self.type, code)) for code in named_by("Patient").get(self.type, ()))
        for own in (True, False):
            if own and not self.shape.own:
                continue
            g, x = self.alias(), self.alias()
            source, good = (
                (self.rows("own", g), "1 = 1")
                if own
                else (f"care_relationship {g}", f"{g}.type = 'Patient' AND {self._good(g, True)}")
            )
            id = f"{g}.value" if own else f"{g}.id"
            if self.type == "Patient":
                found.append(
                    f"SELECT {x}.key AS resource_key FROM {source} CROSS JOIN resource {x} WHERE {good} AND {x}.type = {type}"
                    f" AND {x}.id = {id} AND NOT {x}.deleted"
                )
            elif params:
                found.append(
                    f"SELECT {x}.resource_key FROM {source} CROSS JOIN search_reference {x} WHERE {good} AND {x}.param IN ({params})"
                    f" AND {x}.target_id = {id} AND {x}.target_type = 'Patient'"
                )
        return found

    def _naming(self, type: str) -> str:
        k, x, r = self.alias(), self.alias(), self.alias()
        source = self.rows("known", k)
        return (
            f"SELECT {x}.resource_key FROM {source} CROSS JOIN search_reference {x} CROSS JOIN resource {r} WHERE {x}.param = 0"
            f" AND {x}.target_type || '/' || {x}.target_id = {k}.value"
            f" AND {x}.target_id = substr({k}.value, {self._in_text(f'{k}.value')} + 1)"
            f" AND {r}.key = {x}.resource_key AND {r}.type = {type}"
        )

    def _in_text(self, text: str) -> str:
        return f"strpos({text}, '/')" if self.shape.dialect == "postgresql" else f"instr({text}, '/')"


def _barred(text: str) -> str:
    """SQL text as it stands in a list between bars."""
    return f"'|' || {text} || '|'"


def _quoted(words: Iterable[str]) -> str:
    """Words of ours as SQL literals."""
    return ", ".join(f"'{word}'" for word in sorted(words))


@cache
def _dated(type: str) -> int | None:
    """The parameter by which the time of what a resource tells of is known."""
    code = when(type)
    return None if code is None else param_key(type, code)
