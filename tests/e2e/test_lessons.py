"""A slider of the lessons in a real browser, with the installed ipywidgets and with Colab's."""

from __future__ import annotations

from tests.e2e.test_explorer import expect, serious, slider


def test_a_slider_has_a_name_and_says_its_value(lesson):
    handle = slider(lesson, "Rank")
    shown = lesson.locator(".widget-readout")
    for key in ("Home", "ArrowRight"):
        before = lesson.locator(".panel-says p").inner_text()
        handle.press(key)
        expect(lesson.locator(".panel-says p")).not_to_have_text(before)
        expect(handle).to_have_attribute("aria-valuetext", shown.inner_text())
        assert f"Rank {shown.inner_text()}:" in lesson.locator(".panel-says p").inner_text()
    expect(shown).to_have_attribute("contenteditable", "false")
    for name in ("min", "max", "now"):
        assert float(handle.get_attribute(f"aria-value{name}")) >= 0


def test_what_holds_the_line_is_a_live_region_and_stays(lesson):
    holds = lesson.locator(".panel-says > .widget-html-content")
    expect(holds).to_have_attribute("role", "status")
    expect(holds).to_have_attribute("aria-live", "polite")
    holds.evaluate("place => { place.same = true; }")
    slider(lesson, "Rank").press("End")
    expect(lesson.locator(".panel-says p")).to_contain_text("Rank 8:")
    assert holds.evaluate("place => place.same")
    assert not holds.locator("[role]").count()


def test_no_tooltip_is_written_as_null(lesson):
    assert not lesson.locator("[title=null]").count()


def test_the_slider_has_no_serious_findings(lesson, axe):
    assert not serious(lesson, axe)
