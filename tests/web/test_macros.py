"""What pages are put together from, also those that are written later."""

from types import SimpleNamespace

import pytest

from fhircm.web.pages import Pages

HOSTILE = "<b onclick=x>&\"'"
ESCAPED = "&lt;b onclick=x&gt;&amp;&#34;&#39;"


@pytest.fixture
def forms():
    pages = Pages("http://hub.example", "Riverbend Care", "America/Chicago", None)
    return pages._environment.get_template("forms.html").make_module({"visit": SimpleNamespace(hidden=lambda: "token")})


def test_a_table_names_its_columns_also_where_they_stand_before_each_cell(forms):
    html = forms.table("Clients", ["Name", HOSTILE], [["growth", HOSTILE]])
    assert "<caption>Clients</caption>" in html
    assert f'<th scope="col">{ESCAPED}</th>' in html
    assert f'<td data-column="{ESCAPED}">{ESCAPED}</td>' in html


def test_a_choice_has_a_label_its_value_and_its_error(forms):
    html = forms.select("role", "Role", [("nurse", "Nurse"), ("x", HOSTILE)], value="nurse", hint="One", error="Choose one.")
    assert '<label for="role">Role</label>' in html
    assert '<option value="nurse" selected>Nurse</option>' in html
    assert 'aria-describedby="hint-role error-role"' in html
    assert f">{ESCAPED}</option>" in html


def test_every_form_brings_the_token_of_its_session_along(forms):
    for html in (forms.start("/x"), forms.button_form("/x", "Do it", fields={"id": HOSTILE})):
        assert '<input type="hidden" name="form" value="token">' in html
    assert f'value="{ESCAPED}"' in forms.button_form("/x", "Do it", fields={"id": HOSTILE})


def test_what_went_wrong_is_told_at_once_and_what_went_well_when_there_is_time(forms):
    assert 'role="alert"' in forms.banner("No.", "wrong")
    assert 'role="status"' in forms.banner("Done.")


def test_times_are_those_of_the_clocks_here():
    pages = Pages("http://hub.example", "Riverbend Care", "America/Chicago", None)
    assert pages.minute(1_772_463_600) == "2 March 2026, 09:00"
    assert pages.day(1_772_425_800) == "1 March 2026"
