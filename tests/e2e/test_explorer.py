"""The explorer in a real browser: in JupyterLab, and as the web page that Voila serves.

The page is opened with the ipywidgets of Colab, too.
"""

from __future__ import annotations

import re
import socket
import statistics
import time
import urllib.error
import urllib.request

import psutil
import pytest

from tests.e2e.conftest import RESULTS

PAGES: dict[str, object] = {}  # kind -> its page; the tests of a kind go on from each other
SAYS, NOTE = ".panel-says p", ".live-says p"
MOST_MS = 300
WATCH = """() => {
  window.latencies = []; let pressed = 0;
  document.addEventListener('keydown', () => { pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (pressed) { window.latencies.push(performance.now() - pressed); pressed = 0; }
  }).observe(document.querySelector('.panel-says'), {subtree: true, childList: true});
}"""

every = pytest.mark.parametrize("kind", ["lab", "voila", "voila_colab"])


def picture_of(page, name):
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=RESULTS / name)


def expect(place):
    """Ask Playwright, taken here: without it the tests are skipped, not broken."""
    from playwright.sync_api import expect

    return expect(place)


def text(page, place, pattern, seconds=60):
    """Wait until a line matches, and return it."""
    expect(page.locator(place)).to_have_text(re.compile(pattern), timeout=1000 * seconds)
    return page.locator(place).inner_text()


def slider(page, name):
    found = page.locator(f"[role=slider][aria-label='{name}']")
    found.focus()
    return found


def choose(page, label, value):
    page.get_by_label(label, exact=True).select_option(label=value)


@every
def test_it_opens_and_shows_a_point(browser, kind, request):
    server = request.getfixturevalue(kind)
    address = server.address()
    page = PAGES[kind] = browser.new_page(viewport={"width": 1280, "height": 800})
    if kind == "lab":
        page.goto(address.replace("/lab?", "/lab/tree/06_explorer.ipynb?"))
        # the toolbar says idle before the kernel is there, and "Run All" would be lost
        page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=90_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_text("Not answered yet.").last.wait_for(timeout=120_000)
        page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=60_000)
    else:
        page.goto(address, timeout=120_000)
    page.locator(SAYS).wait_for(timeout=120_000)
    page.locator(SAYS).scroll_into_view_if_needed()
    choose(page, "method", "prunelora")
    text(page, SAYS, r"^prunelora, class 3, rank \d+, .* metrics inside the oracles' band")
    assert page.locator(".explorer figure img").count() == 3
    if kind != "lab":
        assert not page.locator(".jp-InputArea-editor").count(), "no code on the page"
    assert (page.locator(".ui-slider-handle").count() > 0) == (kind == "voila_colab")
    picture_of(page, f"{kind}-opened.png")


@every
def test_a_slider_moved_by_keyboard_changes_numbers_and_picture(kind):
    page = PAGES[kind]
    slider(page, "rank").press("Home")
    text(page, SAYS, "rank 1,")
    slider(page, "sparsity").press("Home")
    text(page, SAYS, "sparsity 0 %")
    image, table = (page.locator(f".explorer {place}").first for place in ("figure img", "table"))
    before = image.get_attribute("src"), table.text_content()
    slider(page, "sparsity").press("ArrowRight")
    line = text(page, SAYS, r"sparsity [1-9]\d* %")
    # the line, the picture, the table and the handle are messages of their own
    expect(image).not_to_have_attribute("src", before[0])
    expect(table).not_to_have_text(before[1])
    read_aloud = re.search(r"sparsity (\d+ %)", line)[1]
    expect(slider(page, "sparsity")).to_have_attribute("aria-valuetext", read_aloud)


@every
def test_a_slider_that_is_switched_off_says_so_and_no_value_can_be_typed_over(kind):
    page = PAGES[kind]
    for method, off, stop in (("finetune", "true", "-1"), ("prunelora", "false", "0")):
        choose(page, "method", method)
        text(page, SAYS, f"^{method},")
        for name in ("rank", "sparsity"):
            handle = page.locator(f"[role=slider][aria-label='{name}']")
            expect(handle).to_have_attribute("aria-disabled", off)
            expect(handle).to_have_attribute("tabindex", stop)
        for readout in page.locator(".explorer .widget-readout").all():
            expect(readout).to_have_attribute("contenteditable", "false")


@every
def test_what_has_the_focus_can_be_seen(kind):
    page = PAGES[kind]
    page.get_by_label("method", exact=True).focus()
    seen = []
    for _ in range(8):
        seen.append(
            page.evaluate("""() => {
            const at = document.activeElement, {outlineStyle, outlineWidth} = getComputedStyle(at);
            return [at.tagName, outlineStyle, outlineWidth];
        }""")
        )
        page.keyboard.press("Tab")
    assert {tag for tag, *_ in seen} >= {"SELECT", "BUTTON"}
    assert all(shown == ["solid", "2px"] for _, *shown in seen), seen


@every
def test_the_new_label_comes_soon_after_the_key(kind):
    page = PAGES[kind]
    handle = slider(page, "sparsity")
    handle.press("Home")
    text(page, SAYS, "sparsity 0 %")
    page.evaluate(WATCH)
    for i in range(11):
        before = page.locator(SAYS).inner_text()
        handle.press("ArrowLeft" if i % 2 else "ArrowRight")
        page.wait_for_function("([place, old]) => document.querySelector(place).innerText !== old",
                               arg=[SAYS, before])  # fmt: skip
    taken = page.evaluate("window.latencies")
    assert len(taken) == 11
    print(f"{kind}: median {statistics.median(taken):.0f} ms of {[round(t) for t in taken]}")
    assert statistics.median(taken) <= MOST_MS, taken


@every
def test_of_several_quick_moves_the_last_one_stays(kind):
    page = PAGES[kind]
    handle = slider(page, "sparsity")
    handle.press("Home")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        handle.press(key)
    text(page, SAYS, "sparsity 0 %")
    page.wait_for_timeout(500)
    assert "sparsity 0 %" in page.locator(SAYS).inner_text()


@every
def test_run_it_live_finishes_and_draws(kind):
    page = PAGES[kind]
    page.get_by_role("button", name="Run it live").click()
    text(page, NOTE, r"trained and measured in [\d.]+ s\.")
    text(page, SAYS, "Trained now: ")
    # the oracle's arrival draws the tables again: one found before it may be gone when it is read
    table = page.locator(".explorer table", has_text="live - stored").first
    expect(table).to_contain_text(re.compile(r"[+-]\d"))
    text(page, NOTE, r"(?!.*Now an oracle)trained and measured|differ for that reason")
    page.locator(".explorer .pixels").first.wait_for(timeout=60_000)
    page.locator(SAYS).scroll_into_view_if_needed()
    picture_of(page, f"{kind}-live.png")


@every
def test_stop_stops(kind):
    page = PAGES[kind]
    choose(page, "seed", "1")
    text(page, SAYS, "seed 1:")
    page.get_by_role("button", name="Run it live").click()
    text(page, NOTE, "^prunelora, .*, seed 1: training …$")
    text(page, ".live-steps", r"^step [1-9]\d* of")
    page.get_by_role("button", name="Stop").click()
    text(page, NOTE, r"stopped after \d+ of \d+ steps", seconds=10)
    # the words and the buttons are messages of their own: one can be seen before the other
    expect(page.get_by_role("button", name="Run it live")).to_be_enabled()
    choose(page, "seed", "0")
    text(page, SAYS, "seed 0:")


@every
def test_an_exception_is_shown_and_the_next_move_draws_again(kind):
    page = PAGES[kind]
    slider(page, "rank").press("End")
    text(page, SAYS, "Nothing could be drawn. RuntimeError: broken on purpose")
    expect(page.locator(SAYS)).to_have_attribute("role", "alert")
    slider(page, "rank").press("Home")
    text(page, SAYS, "rank 1,.*metrics inside")


@every
def test_pins_can_be_taken_along(kind):
    page = PAGES[kind]
    page.get_by_role("button", name="Pin this point").click()
    link = page.get_by_role("link", name="Download CSV")
    link.wait_for()
    with page.expect_download() as waiting:
        link.click()
    content = waiting.value.path().read_text()
    assert waiting.value.suggested_filename == "explorer.csv"
    assert content.startswith("pin,method,forget,rank,sparsity,seed,kind,name,value")
    assert "prunelora" in content


@every
def test_no_name_in_a_menu_is_cut_off(kind):
    cut = PAGES[kind].evaluate("""() => [...document.querySelectorAll('.explorer select')].map(
      menu => {
        const style = getComputedStyle(menu), pad = ['paddingLeft', 'paddingRight'];
        const room = pad.reduce((left, name) => left - parseFloat(style[name]), menu.clientWidth);
        const pen = document.createElement('canvas').getContext('2d');
        pen.font = style.font;
        return [...menu.options].filter(one => pen.measureText(one.text).width > room)
                                .map(one => one.text);
      }).flat()""")
    assert not cut


@every
def test_edges_can_be_seen_where_the_system_chooses_the_colours(kind):
    page = PAGES[kind]
    page.emulate_media(forced_colors="active")
    for place in ("button", ".slider", ".progress"):
        one = page.locator(f".explorer {place}").first
        expect(one).to_have_css("border-top-style", "solid")
        expect(one).to_have_css("border-top-width", "1px")
    page.emulate_media(forced_colors="none")


@every
def test_links_have_the_colour_of_the_theme(kind):
    page = PAGES[kind]
    page.mouse.move(0, 0)  # below the mouse they have another one in Lab
    page.evaluate("document.body.style.setProperty('--jp-content-link-color', 'rgb(1, 2, 3)')")
    expect(page.get_by_role("link", name="Download CSV")).to_have_css("color", "rgb(1, 2, 3)")
    page.evaluate("document.body.style.removeProperty('--jp-content-link-color')")


@every
def test_a_picture_of_ones_own_is_answered_and_other_files_are_refused(kind, tmp_path):
    from PIL import Image, ImageDraw

    page, good, bad = PAGES[kind], tmp_path / "seven.png", tmp_path / "none.png"
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).line([(14, 14), (50, 14), (26, 54)], fill=255, width=9)
    image.save(good)
    bad.write_text("<script>alert(1)</script>")
    for path in (good, bad):
        with page.expect_file_chooser() as waiting:
            page.get_by_role("button", name=re.compile("Own picture")).click()
        waiting.value.set_files(path)
        if path == good:
            page.get_by_text("your picture, as the networks get it").wait_for()
    page.get_by_text("the picture cannot be read").wait_for()


@every
def test_a_file_that_is_too_large_is_refused_and_the_button_goes_on(kind, tmp_path):
    from PIL import Image

    page, good, large = PAGES[kind], tmp_path / "four.png", tmp_path / "large.png"
    Image.new("L", (8, 8), 90).save(good)
    large.write_bytes(good.read_bytes() + bytes(11_000_000))
    button = page.get_by_role("button", name=re.compile("Own picture"))
    expect(page.locator(".own-says [role=alert]")).to_contain_text("none.png: ")
    page.evaluate("""() => {
      const place = document.querySelector('.upload-says');
      window.said = [];
      new MutationObserver(() => window.said.push(place.innerText.trim()))
        .observe(place, {subtree: true, childList: true});
    }""")
    for path in (large, good):
        with page.expect_file_chooser() as waiting:
            button.click()
        waiting.value.set_files(path)
        if path == large:
            text(page, ".upload-says p", "^large.png is too large: at most 10 MB.$")
            assert not page.locator(".own-says [role=alert]").count(), "of the file before"
        else:
            expect(page.locator(".own-says")).to_contain_text("as the networks get it")
            text(page, ".upload-says p", "^at most 10 MB$")
            assert "sending four.png …" in page.evaluate("window.said")
    assert page.evaluate("HTMLInputElement.prototype.click.toString()").endswith("[native code] }")


@every
def test_lines_are_live_regions_and_no_tooltip_is_written_as_null(kind):
    page = PAGES[kind]
    for name in ("panel", "live", "own", "upload"):
        holds = page.locator(f".{name}-says > .widget-html-content")
        expect(holds).to_have_attribute("role", "status")
    assert not page.locator(".live-steps [role], .live-steps [aria-live]").count()
    assert not page.locator(".explorer [title=null]").count()


def serious(page, axe):
    """What axe finds on the page and calls serious or critical."""
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    return [(v["id"], v["help"], [n["html"][:200] for n in v["nodes"][:3]])
            for v in found if v["impact"] in ("serious", "critical")]  # fmt: skip


@pytest.mark.parametrize("kind", ["voila", "voila_colab"])
def test_the_page_has_no_serious_findings(kind, axe):
    assert not serious(PAGES[kind], axe)


def test_the_page_fits_a_narrow_screen():
    page = PAGES["voila"]
    for method in ("finetune", "lora"):
        choose(page, "method", method)
        text(page, SAYS, f"^{method},")
        page.get_by_role("button", name="Pin this point").click()
        page.locator(".explorer th", has_text=re.compile(f"^{method}, class")).wait_for()
    page.set_viewport_size({"width": 400, "height": 800})
    page.locator(SAYS).scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    picture_of(page, "voila-narrow.png")
    page.screenshot(path=RESULTS / "voila-narrow-whole.png", full_page=True)
    wide = page.evaluate("""() => [...document.querySelectorAll('.explorer *')]
        .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1
                     && e.checkVisibility({opacityProperty: true, visibilityProperty: true})
                     && !e.closest('.noUi-target'))
        .map(e => e.outerHTML.slice(0, 120))""")
    assert not wide
    for name in ("pinned points", "figure of the pinned points"):
        place = page.locator(f".explorer .scroll[aria-label='{name}']")
        assert place.evaluate("place => place.scrollWidth > place.clientWidth"), "it can be read"
    heading = page.locator(".explorer .scroll[aria-label='pinned points'] tbody th").first
    at = heading.bounding_box()["x"]
    heading.evaluate("one => { one.closest('.scroll').scrollLeft = 50; }")
    assert heading.bounding_box()["x"] == at
    page.set_viewport_size({"width": 1280, "height": 800})


def test_a_page_that_is_left_leaves_no_kernel_behind(browser, voila):
    def kernels():
        found = psutil.process_iter(["ppid", "cmdline"])  # of one that has ended there is no line
        return {one.pid for one in found if one.info["ppid"] == voila.process.pid
                and "ipykernel" in str(one.info["cmdline"])}  # fmt: skip

    before = kernels()
    with browser.new_context() as visitor:
        page = visitor.new_page()
        page.goto(voila.address(), timeout=120_000)
        page.locator(SAYS).wait_for(timeout=120_000)
        mine = kernels() - before
        choose(page, "seed", "1")
        text(page, SAYS, "seed 1:")
        page.get_by_role("button", name="Run it live").click()
        text(page, NOTE, ", seed 1: training")
        page.reload(timeout=120_000)
        page.locator(SAYS).wait_for(timeout=120_000)
        mine |= kernels() - before
        page.close(run_before_unload=True)
        ends = time.monotonic() + 60
        while mine & kernels() and time.monotonic() < ends:
            time.sleep(0.2)
    assert len(mine) == 2, "one before the page was loaded again, one after"
    assert not mine & kernels()


def test_other_pages_cannot_end_a_kernel(browser, voila):
    """The cookies of the page go along with what a page of another port sends."""
    visitor = browser.new_context()
    page = visitor.new_page()
    page.goto(voila.address(), timeout=120_000)
    page.locator(SAYS).wait_for(timeout=120_000)
    kernel = page.evaluate(
        "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"
    )
    asked = f"http://127.0.0.1:{voila.port}/voila/api/shutdown/{kernel}"
    for headers in ({}, {"Origin": "http://127.0.0.1:1"}):
        assert visitor.request.post(asked, headers=headers).status in (403, 404)
    choose(page, "method", "lora")
    text(page, SAYS, "^lora")
    page.close(run_before_unload=True)


def test_the_page_asks_no_other_server(browser, voila):
    page, asked = browser.new_page(), []
    here = f"http://127.0.0.1:{voila.port}/"
    page.route(lambda address: not address.startswith(here),
               lambda route: (asked.append(route.request.url), route.abort()))  # fmt: skip
    page.goto(voila.address(), timeout=120_000)
    page.locator(SAYS).wait_for(timeout=120_000)
    page.close(run_before_unload=True)
    assert not asked


def status_of(address):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    try:
        return urllib.request.build_opener(Stay).open(address, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_there_is_no_page_and_no_file_at_all(voila):
    address = voila.address()
    page, token = address.split("?")
    assert status_of(page) in (302, 401, 403)
    assert status_of(f"{page}?token=wrong") in (302, 401, 403)
    for path in ("voila/files/06_explorer.ipynb", "voila/files/server.log", "voila/files/a.png",
                 "api/contents", "voila/api/contents/", "api/kernels", "api/terminals",
                 "voila/files/../server.log"):  # fmt: skip
        assert status_of(f"{page}{path}?{token}") in (302, 403, 404, 405), path


def test_the_page_is_bound_to_this_machine(voila):
    voila.address()
    others = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        with socket.socket() as one:
            one.settimeout(3)
            assert one.connect_ex((address, voila.port)) != 0, address
