"""The LACE index against points worked out by hand from the published table."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.risk import Lace, charlson, emergency_visits, emergent, lace_index, stay_days

CHICAGO = BusinessCalendar("America/Chicago", "US")
ICD, SCT = "http://hl7.org/fhir/sid/icd-10-cm", "http://snomed.info/sct"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


@pytest.mark.parametrize(
    ("days", "emergency", "comorbidity", "visits", "score", "level"),
    [
        (0, False, 0, 0, 0, "low"),
        (1, False, 1, 1, 3, "low"),
        (3, False, 1, 0, 4, "low"),
        (2, True, 0, 0, 5, "moderate"),
        (4, False, 2, 3, 9, "moderate"),
        (6, True, 3, 0, 10, "high"),
        (7, True, 4, 2, 15, "high"),
        (13, True, 9, 9, 17, "high"),
        (14, True, 4, 4, 19, "high"),
        (200, True, 30, 30, 19, "high"),
    ],
)
def test_points_by_hand(days, emergency, comorbidity, visits, score, level):
    lace = Lace(days, emergency, comorbidity, visits)
    assert (lace.score, lace.level) == (score, level)


@given(st.integers(0, 60), st.booleans(), st.integers(0, 40), st.integers(0, 40))
def test_more_is_never_less_risk(days, emergency, comorbidity, visits):
    lace = Lace(days, emergency, comorbidity, visits)
    assert 0 <= lace.score <= 19
    more = [Lace(days + 1, emergency, comorbidity, visits), Lace(days, True, comorbidity, visits)]
    more += [Lace(days, emergency, comorbidity + 1, visits), Lace(days, emergency, comorbidity, visits + 1)]
    assert all(other.score >= lace.score for other in more)


def condition(system, code, clinical="active", verification="confirmed"):
    return {
        "code": {"coding": [{"system": system, "code": code}]},
        "clinicalStatus": {"coding": [{"code": clinical}]},
        "verificationStatus": {"coding": [{"code": verification}]},
    }


@pytest.mark.parametrize(
    ("conditions", "points"),
    [
        ([], 0),
        ([condition(ICD, "I21.4")], 1),
        ([condition(ICD, "I50.9"), condition(SCT, "84114007")], 2),  # one comorbidity, coded twice
        ([condition(ICD, "E11.9")], 1),
        ([condition(ICD, "E11.9"), condition(ICD, "E11.22")], 2),  # with end-organ damage counts alone
        ([condition(ICD, "C50.911"), condition(ICD, "C78.00")], 6),  # metastatic counts alone
        ([condition(ICD, "N18.3")], 2),
        ([condition(ICD, "N18.30"), condition(ICD, "N18.6")], 4),
        ([condition(SCT, "26929004"), condition(SCT, "13645005"), condition(SCT, "44054006")], 6),
        ([condition(ICD, "I10"), condition(SCT, "38341003")], 0),  # hypertension is none of them
        ([condition(ICD, "J44.1", clinical="resolved")], 0),
        ([condition(ICD, "I63.9", clinical="resolved")], 1),  # a stroke counts though it is over
        ([condition(ICD, "I50.9", verification="refuted")], 0),
        ([condition(ICD, "I50.9", verification="entered-in-error")], 0),
        ([condition("http://example.org", "I50.9")], 0),
    ],
)
def test_comorbidities(conditions, points):
    assert charlson(conditions)[0] == points


def test_the_coverage_of_the_table_is_counted():
    _, names, known, seen = charlson([condition(ICD, "I50.9"), condition(ICD, "I10"), condition(SCT, "84114007")])
    assert (names, known, seen) == (("congestive heart failure",), 2, 3)


def test_the_table_of_comorbidities_has_the_published_points():
    points = {one.name: one.points for one in lace_index().comorbidities}
    assert sorted(points.values()) == [1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 4, 4, 6]
    codes = [code for one in lace_index().comorbidities for code in one.snomed]
    assert len(codes) == len(set(codes)), "a code means one comorbidity"
    assert all(verhoeff(code) for code in codes)


def verhoeff(number):
    """The check digit of SNOMED CT identifiers."""
    d = [[(i + j) % 5 if i < 5 and j < 5 else 0 for j in range(10)] for i in range(10)]
    for i in range(10):
        for j in range(10):
            if i < 5 <= j:
                d[i][j] = 5 + (i + j) % 5
            elif j < 5 <= i:
                d[i][j] = 5 + (i - j) % 5
            elif i >= 5 and j >= 5:
                d[i][j] = (i - j) % 5
    p = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    while len(p) < 8:
        p.append([p[-1][p[1][i]] for i in range(10)])
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = d[check][p[place % 8][int(digit)]]
    return check == 0


def test_stays_are_counted_in_local_midnights():
    def stay(start, end):
        return stay_days({"period": {"start": start, "end": end}}, CHICAGO)

    assert stay("2026-03-02T08:00:00-06:00", "2026-03-02T20:00:00-06:00") == 0
    assert stay("2026-03-03T01:00:00Z", "2026-03-03T20:00:00Z") == 1, "in Chicago the admission was on the evening before"
    assert stay("2026-03-02", "2026-03-09") == 7
    assert stay_days({"period": {"end": "2026-03-09"}}, CHICAGO) == 0


def test_emergency_visits_of_the_last_six_months_without_the_one_that_led_to_the_admission():
    def visit(id, start, end=None, code="EMER", **members):
        period = {"start": start, **({"end": end} if end else {})}
        return {"id": id, "status": "finished", "class": {"system": ACT, "code": code}, "period": period, **members}

    visits = [
        visit("counted", "2026-01-10T10:00:00-06:00", "2026-01-10T15:00:00-06:00"),
        visit("first day that counts", "2025-09-02T00:00:00-05:00"),
        visit("too old", "2025-09-01T23:00:00-05:00"),
        visit("led to it", "2026-03-01T22:00:00-06:00", "2026-03-02T07:00:00-06:00"),
        visit("after it", "2026-03-10T10:00:00-05:00"),
        visit("by type", "2026-02-01T10:00:00-06:00", code="AMB", type=[{"coding": [{"system": SCT, "code": "4525004"}]}]),
        visit("office", "2026-02-01T10:00:00-06:00", code="AMB"),
        visit("an admission", "2026-02-01T10:00:00-06:00", code="IMP", type=[{"coding": [{"system": SCT, "code": "50849002"}]}]),
        visit("cancelled", "2026-02-01T10:00:00-06:00", status="cancelled"),
        visit("undated", "2026"),
    ]
    admission = datetime.fromisoformat("2026-03-02T08:00-06:00")
    assert emergency_visits(visits, admission, CHICAGO) == ["counted", "first day that counts", "by type"]


def test_what_makes_an_admission_emergent():
    source = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": "emd"}]}
    assert emergent({"hospitalization": {"admitSource": source}})
    assert emergent({"priority": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActPriority", "code": "EM"}]}})
    assert emergent({"type": [{"coding": [{"system": SCT, "code": "183452005"}]}]})
    assert not emergent({"class": {"system": ACT, "code": "IMP"}})
