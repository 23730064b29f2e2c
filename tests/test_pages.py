"""Pages as people meet them: in Debian's Chromium, at four widths, light and dark, by keyboard, scanned by axe-core."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import missing_package
from stories import rich
from vitrail.evaluation.predictions import read_predictions
from vitrail.report.comparison import comparison
from vitrail.report.page import compare_page, data_page, run_page
from vitrail.report.story import read_story

AXE = Path(__file__).parents[1] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (375, 768, 1280, 1920)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, and without a network: every name leads nowhere."""
    selenium = pytest.importorskip("selenium.webdriver")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        missing_package("chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["rich", "finished", "data", "compare"])
def page(request, run, tmp_path_factory):
    """A report with something in every section, that of a tiny run as it is, a data check, and two runs compared."""
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    whole = rich(path.parent) if request.param == "rich" else read_story(run)
    if request.param == "data":
        whole = rich(path.parent)
        thumbnails = {tile.id: tile.picture for tile in whole.gallery}
        path.write_text(data_page(whole.data, thumbnails))
    elif request.param == "compare":
        shutil.copytree(run, path.parent / "other")
        table = path.parent / "other" / "eval" / "test" / "predictions.csv"
        mistaken = replace(read_predictions(table), rank=np.full(4, 2), predicted=("light below",) * 4)
        mistaken.write(table)
        path.write_text(compare_page(comparison(run, path.parent / "other")))
    else:
        path.write_text(run_page(whole))
    return path


def show(browser, page, width=1280, dark=False):
    colours = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
    shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    browser.get(page.as_uri())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(browser, page, dark):
    """WCAG 2.2 A and AA and best practices, with every closed part opened."""
    if not AXE.is_file():
        missing_package("npm (axe-core: make axe)")
    show(browser, page, dark=dark)
    # What comes over the debugging protocol is not held by the page's own content policy.
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    browser.execute_cdp_cmd(
        "Runtime.evaluate", {"expression": "document.querySelectorAll('details').forEach(d => d.open = true)"}
    )
    code = (
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(found => JSON.stringify(found.violations.map(v => [v.id, v.nodes[0].html])))"
    )
    answer = browser.execute_cdp_cmd("Runtime.evaluate", {"expression": code, "awaitPromise": True})
    assert answer["result"].get("value") == "[]", answer


@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_makes_the_page_scroll_sideways(browser, page, width):
    show(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    small = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.children.length == 0 && e.textContent.trim()"
        " && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML)"
    )
    assert not small


def test_nothing_is_asked_of_any_host_and_nothing_complains(browser, page):
    import json

    browser.get_log("performance")
    browser.get_log("browser")
    show(browser, page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(address.startswith(("file:", "data:")) for address in asked)
    assert not browser.get_log("browser")
    broken = "return [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_the_keyboard_reaches_everything(browser, page):
    """Tab goes through every link, every closed part and every part that scrolls; Enter opens; what has the focus shows it."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    wanted = browser.execute_script(
        "return [...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')].filter(e => e.checkVisibility()).length"
    )
    seen = set()
    for _ in range(wanted):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        place, ring = browser.execute_script(
            "const e = document.activeElement;"
            "return [[...document.querySelectorAll('*')].indexOf(e), getComputedStyle(e).outlineStyle]"
        )
        assert ring != "none"
        seen.add(place)
    assert len(seen) == wanted
    closed = "return document.querySelectorAll('details[open]').length"
    before = browser.execute_script(closed)
    browser.execute_script("document.querySelector('summary').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script(closed) == before + 1
