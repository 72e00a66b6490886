"""The report in a browser: it plays, reacts, and is accessible in all states.

Needs chromium on the PATH (``apt-get install chromium``)."""

import shutil

import pytest

from speechbrain_vq.report import write_report
from tests.commands import MINI
from tests.report.runs import make_run

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_core_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
EVERY = "[...document.querySelectorAll('audio')].every"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = driver.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports in all states, by name."""
    folder = tmp_path_factory.mktemp("reports")
    collapsed = make_run(folder / "c", 1.5, 3.0, "vanilla")
    silent = make_run(folder / "s")
    shutil.rmtree(silent / "model")
    sources = {
        "phones": (make_run(folder / "p"), [collapsed]),
        "no phones": (make_run(folder / "n", phones=False), []),
        "collapsed": (collapsed, []),
        "no audio": (silent, []),
        "several codebooks": ("speech", []),
        "one codebook": (MINI, []),
    }
    return {
        name: write_report(source, folder / f"{name}.html", compare)
        for name, (source, compare) in sources.items()
    }


@pytest.fixture
def open_page(browser, pages):
    """Open a state's page; it may neither complain nor load anything."""
    problems = []

    def open_state(state, **options):
        page = browser.new_page(**options)
        page.on("console", lambda m: problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:"))
            or problems.append(request.url),
        )
        page.goto(pages[state].as_uri())
        return page

    yield open_state
    assert not problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "state",
    ["phones", "no phones", "collapsed", "no audio"]
    + ["several codebooks", "one codebook"],
)
def test_every_state_is_accessible_and_fits(open_page, state, scheme):
    page = open_page(state, color_scheme=scheme)
    for width in (1280, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        violations = axe.Axe().run(page)["violations"]
        assert not [
            (v["id"], v["nodes"][0]["html"][:200])
            for v in violations
            if v["impact"] in ("serious", "critical")
        ]
    assert page.locator(".banner.collapsed").count() == (state == "collapsed")
    page.close()


def test_players(open_page):
    page = open_page("phones")
    page.wait_for_function(f"{EVERY}(a => a.duration > 0.5)")
    first = page.locator(".utterance").first
    original, decoded = first.get_by_role("button").all()
    position = first.get_by_role("slider")
    original.click()
    playing = "document.querySelectorAll('audio')[{}].currentTime > 0.1"
    page.wait_for_function(playing.format(0))
    playwright.expect(original).to_have_attribute("aria-pressed", "true")
    # The other one starts where this one was, and stops it.
    decoded.click()
    page.wait_for_function(playing.format(1))
    playwright.expect(original).to_have_attribute("aria-pressed", "false")
    position.focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('audio')[1].paused")
    playwright.expect(decoded).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Home")
    assert float(position.get_attribute("aria-valuenow")) == 0
    page.keyboard.press("ArrowRight")
    assert position.get_attribute("aria-valuenow") == "0.10"
    assert "phone s" in position.get_attribute("aria-valuetext")
    # A click takes the cursor there.
    box = position.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    half = float(position.get_attribute("aria-valuemax")) / 2
    assert abs(float(position.get_attribute("aria-valuenow")) - half) < 0.05
    page.close()


def test_keys_work_without_focus(open_page):
    """On what is in view, else on what was used last; not in a button."""
    page = open_page("phones", viewport={"width": 1280, "height": 500})
    page.wait_for_function(f"{EVERY}(a => a.duration > 0.5)")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelectorAll('audio')[0].paused")
    # It scrolls there.
    page.wait_for_function(
        "(b => b.top >= 0 && b.bottom <= 501)"
        "(document.querySelector('.utterance').getBoundingClientRect())"
    )
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('audio')[0].paused")
    second = page.locator(".utterance").nth(1)
    second.evaluate("u => u.scrollIntoView({behavior: 'instant'})")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelectorAll('audio')[2].paused")
    # A button of the table sorts, and no key plays.
    page.evaluate("document.querySelectorAll('audio')[2].pause()")
    page.locator("#compare thead button").first.focus()
    page.keyboard.press("x")
    page.keyboard.press("Space")
    assert page.evaluate(f"{EVERY}(a => a.paused)")
    page.close()


def test_what_scrolls_sideways_fades(open_page):
    page = open_page("phones", viewport={"width": 420, "height": 900})
    table = page.locator("#compare .scroll")
    page.wait_for_function("document.querySelector('#compare .more')")
    table.evaluate("box => box.scrollTo({left: 9999, behavior: 'instant'})")
    page.wait_for_function("!document.querySelector('#compare .more')")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("!document.querySelector('.more')")
    page.close()


def test_charts_answer_to_pointer_and_keys(open_page):
    page = open_page("phones")
    tip = page.locator("#tip")
    for chart in page.locator("[data-tips]").all():
        chart.scroll_into_view_if_needed()
        chart.hover()
        assert tip.is_visible() and tip.inner_text()
        page.mouse.move(0, 0)
        assert not tip.is_visible()
        chart.focus()
        page.keyboard.press("ArrowRight")
        before = tip.inner_text()
        page.keyboard.press("ArrowRight")
        assert tip.is_visible() and tip.inner_text() != before
        page.keyboard.press("Escape")
        assert not tip.is_visible()
    page.close()


def test_the_table_sorts(open_page):
    page = open_page("phones")
    table = page.locator("#compare table")
    head = table.get_by_role("columnheader", name="perplexity")

    def column():
        cells = table.locator("tbody tr td:nth-child(4)").all_inner_texts()
        return list(map(float, cells))

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == [391, 3]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == [3, 391]
    page.close()
