"""The report in a real browser: no error, no request, and an explorer that works by mouse and by keyboard."""

import shutil

import pytest

from tests.made_analysis import made_settings, made_tables
from vmapens.report import write_report
from vmapens.report.figures import PLOTS

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: install the extra `test`")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: install Chromium to look at the report in it")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def browser():
    driver = playwright.sync_playwright().start()
    opened = driver.chromium.launch(executable_path=BROWSER, args=OPTIONS)
    yield opened
    opened.close()
    driver.stop()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    settings = made_settings()
    settings["features"][2]["feature"] = "<img src=x onerror=alert(1)>"
    write_report(made_tables(), settings, path)
    return path


@pytest.fixture
def page(browser, report):
    """The report, opened; when the test is over there must have been no error and no request but for the file."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong, asked = [], []
    opened.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#stay-maps[data-stay]")
    yield opened
    opened.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


def pixels(page, canvas=0):
    return page.locator("#stay-maps canvas").nth(canvas).evaluate("canvas => canvas.toDataURL()")


def table(page):
    return page.locator("#top-cells tbody tr").all_inner_texts()


def test_every_figure_has_a_size(page):
    figures = page.locator("figure svg[role=img]")
    assert figures.count() == len(PLOTS)
    for i in range(len(PLOTS)):
        box = figures.nth(i).bounding_box()
        assert box["width"] > 500
        assert box["height"] > 60


@pytest.mark.parametrize("width", [480, 1200])
def test_the_page_is_as_wide_as_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_another_stay_changes_the_maps_and_the_table(page):
    maps, rows = [pixels(page, 0), pixels(page, 1)], table(page)
    assert maps[0] != maps[1]
    assert len(rows) == 20
    names = page.locator("#stay option")
    assert names.count() == 3
    page.get_by_label("Stay", exact=True).select_option(index=1)
    page.wait_for_selector("#stay-maps[data-stay='140017']")
    assert pixels(page, 0) != maps[0]
    assert pixels(page, 1) != maps[1]
    assert table(page) != rows
    assert page.locator("#stay-singles canvas").count() == 4


def test_pointing_at_a_cell_reads_it(page):
    """The first row of the table is what the readout says of that cell."""
    name, time, value, measured, held, _ = table(page)[0].split("\t")
    canvas = page.locator("#stay-maps canvas").first
    canvas.scroll_into_view_if_needed()
    step = int(time.removesuffix(" h"))
    names = [feature["feature"] for feature in made_settings()["features"]]
    names[2] = "<img src=x onerror=alert(1)>"
    box = canvas.bounding_box()
    left = max(90, min(170, box["width"] * 0.2))
    row = (box["height"] - 24) / 6
    across = (box["width"] - left - 8) / 8
    canvas.hover(position={"x": left + (step + 0.5) * across, "y": (names.index(name) + 0.5) * row})
    said = page.locator("#readout").inner_text()
    assert said.startswith(f"{name}, {time}")
    assert f"of {held.strip()} of the variants" in said
    assert measured in said
    assert value in said or value == "-"
    assert page.locator("#top-cells tr.here").count() == 1


def test_the_arrow_keys_move_from_cell_to_cell(page):
    canvas = page.locator("#stay-maps canvas").first
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown"):
        canvas.press(key)
    assert page.locator("#readout").inner_text().startswith("temperature, 1 h")
    for _ in range(20):
        canvas.press("ArrowLeft")
    assert page.locator("#readout").inner_text().startswith("temperature, 0 h")


def test_outlines_can_be_taken_off(page):
    before = pixels(page)
    page.get_by_label("outline the cells").uncheck()
    assert pixels(page) != before


def test_a_map_shows_more_light_where_there_is_more_attention(page):
    """The cell of the largest mean is yellow, the far end of the colours."""
    page.get_by_label("outline the cells").uncheck()
    brightest = page.locator("#stay-maps canvas").first.evaluate(
        """canvas => {
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < data.length; i += 4)
                if (data[i] === 253 && data[i + 1] === 231 && data[i + 2] === 37) return true;
            return false;
        }"""
    )
    assert brightest


def test_the_page_prints(page):
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


def test_without_maps_the_page_says_so(browser, tmp_path):
    write_report({}, made_settings(), tmp_path / "report.html")
    opened = browser.new_page()
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto((tmp_path / "report.html").as_uri())
    assert opened.get_by_text("The explorer is not shown").is_visible()
    assert not opened.locator("#stay").is_visible()
    opened.close()
    assert wrong == []
