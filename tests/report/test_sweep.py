"""The reports of sweeps as a reader meets them: one file, no request outside, and it fits."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import Browser, Sweep

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
# Of elements that reach beyond the window, those that nothing around them lets scroll.
TOO_WIDE = """
const scrolls = e => e && e !== document.body &&
  (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll("body *")]
  .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1 && !scrolls(e))
  .map(e => e.tagName + " " + e.className);
"""


@pytest.fixture(scope="module", params=["transfer_learning"])
def page(request: pytest.FixtureRequest, sweep: Sweep, browser: Browser) -> Browser:
    [report] = sweep(request.param)[0].glob(f"08_reporting/{request.param}/report.html/*/*.html")
    browser.open(report.as_uri())
    return browser


def test_it_opens_without_an_error_and_asks_nobody(page: Browser) -> None:
    assert page.faults() == []
    assert page.outside_requests() == []
    titles = [title.text for title in page.driver.find_elements(By.TAG_NAME, "h2")]
    assert {"Every variant", "Leak audit", "Sources", "How this run was made"} <= set(titles)
    figures = page.driver.find_elements(By.TAG_NAME, "figure")
    assert len(figures) >= 2
    for figure in figures:
        assert figure.find_elements(By.CSS_SELECTOR, ".main-svg")
        assert figure.find_elements(By.CSS_SELECTOR, ".trace path, .heatmaplayer image")


def test_a_column_sorts_both_ways(page: Browser) -> None:
    table = next(
        t for t in page.driver.find_elements(By.CSS_SELECTOR, "#variants table") if t.is_displayed()
    )
    heads = [head.text for head in table.find_elements(By.CSS_SELECTOR, "th")]

    def column(name: str) -> tuple[WebElement, list[str]]:
        place = heads.index(name) + 1
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({place})")
        button = table.find_element(By.CSS_SELECTOR, f"th:nth-child({place}) button")
        return button, [cell.text for cell in cells]

    models = sorted(column("Model")[1])
    for down in (False, True):
        column("RMSE")[0].click()
        errors = [float(text) for text in column("RMSE")[1]]
        assert errors == sorted(errors, reverse=down)
        assert errors[0] != errors[-1]
    assert sorted(column("Model")[1]) == models  # rows go whole


def test_dark_and_light(page: Browser) -> None:
    body = page.driver.find_element(By.TAG_NAME, "body")
    colours = []
    for theme in ("dark", "light"):
        choice = page.driver.find_element(By.CSS_SELECTOR, f"[data-theme-choice='{theme}']")
        choice.click()
        assert choice.get_attribute("aria-pressed") == "true"
        colours.append(body.value_of_css_property("background-color"))
    assert colours[0] != colours[1]


def test_nothing_is_wider_than_a_phone_but_what_scrolls(page: Browser) -> None:
    driver = page.driver
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert driver.execute_script("return window.innerWidth") == PHONE["width"]
        assert driver.execute_script(TOO_WIDE) == []
        tables = driver.find_elements(By.CSS_SELECTOR, "#variants .scroll")
        assert any(t.get_property("scrollWidth") > PHONE["width"] for t in tables)
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
