"""Units: what they are worth in base units, and that nothing that is written breaks the reader."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fhircm.fhir.ucum import _table, length, unit

TABLE = _table()
NAMES = sorted({*TABLE["base"], *TABLE["base_without_prefix"], *TABLE["metric"], *TABLE["without_prefix"]})
PREFIXED = sorted({*TABLE["base"], *TABLE["metric"]})
names = st.sampled_from(NAMES)
codes = st.recursive(
    names | st.sampled_from(["10*3", "m2", "s-1", "{cells}", "1", "mg{creat}", "100"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from("./"), inner).map("".join) | inner.map("({})".format) | inner.map("/({})".format)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("number", "code", "base", "worth"),
    [
        ("1", "mg/dL", "g.m-3", "10"),
        ("1", "mmol/L", "m-3.mol", "1"),
        ("1", "10*3/uL", "m-3", "1e12"),
        ("1", "kg/m2", "g.m-2", "1e3"),
        ("760", "mm[Hg]", "g.m-1.s-2", "101324720"),
        ("1", "atm", "g.m-1.s-2", "101325000"),
        ("1", "kcal", "g.m2.s-2", "4184000"),
        ("1", "[lb_av]", "g", "453.59237"),
        ("1", "[oz_av]", "g", "28.349523125"),
        ("1", "[in_i]", "m", "0.0254"),
        ("1", "[mi_i]", "m", "1609.344"),
        ("1", "[gal_us]", "m3", "0.003785411784"),
        ("1", "[foz_us]", "m3", "0.0000295735295625"),
        ("1", "[tsp_us]", "m3", "0.00000492892159375"),
        ("1", "[gal_br]", "m3", "0.00454609"),
        ("1", "a", "s", "31557600"),
        ("1", "mo", "s", "2629800"),
        ("1", "wk", "s", "604800"),
        ("60", "U/L", "m-3.mol.s-1", "0.001"),
        ("60", "{beats}/min", "s-1", "1"),
        ("0", "Cel", "K", "273.15"),
        ("32", "[degF]", "K", "273.15"),
        ("37000", "mCel", "K", "310.15"),
        ("50", "%", "1", "0.5"),
        ("1", "m[IU]/mL", "[iU].m-3", "1000"),
        ("1", "g/L/h", "g.m-3.s-1", "0.2777777777777777777"),
        ("1", "g/(L.h)", "g.m-3.s-1", "0.2777777777777777777"),
        ("1", "mL/min/{1.73_m2}", "m3.s-1", "1.66666666666666666666e-8"),
        ("1", "{# of fetuses}", "1", "1"),
        ("1", "U/(10.g){feces}", "g-1.mol.s-1", "1.666666666666666666e-9"),
        ("1", "[HP]", "g.m2.s-3", "745699.87158227022"),
        ("1", "mmin", "", None),
        ("1", "m[lb_av]", "", None),
        ("1", "Cel/min", "", None),
        ("1", "[pH]", "", None),
        ("1", "dB", "", None),
        ("1", "tablet", "", None),
        ("1", "mg ", "", None),
        ("1", "mg dL", "", None),
        ("1", "mg//dL", "", None),
        ("1", "", "", None),
        ("1", "(" * 90, "", None),
        ("1", "m" * 200, "", None),
        ("1", "m/0", "", None),
        ("1", "m²", "", None),
    ],
)
def test_what_a_number_of_a_unit_is_in_base_units(number, code, base, worth):
    found = unit(code)
    if worth is None:
        assert found is None
    else:
        assert found.code == base
        assert found.canonical(Decimal(number)) == float(Decimal(worth))


def test_every_unit_of_the_table_is_read_and_none_hides_another():
    for name in NAMES:
        assert unit(name), name
    for prefix, factor in TABLE["prefixes"].items():
        for name in PREFIXED:
            if prefix + name not in NAMES:
                assert unit(prefix + name) == (unit(name).code, Fraction(factor) * unit(name).factor, 0), prefix + name


@given(codes, codes)
def test_a_product_is_worth_its_parts(one, other):
    assume(len(one) + len(other) < 90)
    first, second = unit(one), unit(other)
    both, ratio = unit(f"({one}).({other})"), unit(f"({one})/({other})")
    if first and second:
        assert both.factor == first.factor * second.factor
        assert ratio.factor == first.factor / second.factor
        assert unit(f"({other}).({one})") == both


@given(codes)
def test_base_units_are_units_of_their_own_dimension(code):
    assume(len(code) <= 100)
    found = unit(code)
    if found:
        assert unit(found.code) == (found.code, 1, 0)


@given(st.text(alphabet="mgLsd10*^/.()[]{}%'+-²é \0", max_size=120))
def test_nothing_that_is_written_breaks_the_reader(code):
    found = unit(code)
    assert found is None or found.factor > 0


def test_equal_amounts_are_equal_numbers_to_the_last_bit():
    for milligrams in range(1, 2000):
        number = Decimal(milligrams).scaleb(-2)
        assert unit("mg").canonical(number) == unit("g").canonical(number.scaleb(-3)) == unit("ug").canonical(number.scaleb(3))


def test_a_number_of_a_million_digits_is_read_as_its_beginning():
    assert unit("mg").canonical(Decimal("5." + "4" * 10**6)) == 0.0054444444444444445
    with pytest.raises(OverflowError):
        unit("mg").canonical(Decimal("5" * 10**6))


def test_lengths():
    assert length(Decimal("1"), "mi") == length(Decimal("1"), "[mi_i]") == 1609.344
    assert length(Decimal("1.5"), "km") == 1500
    assert length(Decimal("1"), "mg") is None
