"""The report as a reader meets it: one file, no request outside, switches that work."""

from pathlib import Path

import pytest
from kedro.framework.context import KedroContext
from selenium.webdriver.common.by import By

from nocturnal_kedro import plugins
from tests.conftest import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(finished: tuple[Path, KedroContext], browser: Browser) -> Browser:
    path = next(finished[0].rglob("report.html/*/report.html"))
    browser.open(path.as_uri())
    return browser


def test_report_opens_without_an_error_and_asks_nobody(page: Browser) -> None:
    assert page.faults() == []
    assert page.outside_requests() == []
    titles = [title.text for title in page.driver.find_elements(By.TAG_NAME, "h2")]
    for title in (
        "Leaderboard", "Error through the night", "Sample nights", "Clarke error grid",
        "Data quality", "How this run was made",
    ):  # fmt: skip
        assert title in titles
    drawn = page.driver.find_elements(By.CSS_SELECTOR, "figure .main-svg")
    assert len(drawn) >= 7


def test_six_hours_replace_eight(page: Browser) -> None:
    boards = page.driver.find_elements(By.CSS_SELECTOR, ".board")
    assert len(boards) == 4  # two splits, two horizons
    for hours in ("6", "8"):
        page.driver.find_element(By.CSS_SELECTOR, f"[data-hours='{hours}']").click()
        shown = [b.get_attribute("data-table-hours") for b in boards if b.is_displayed()]
        assert shown == [hours, hours]


def test_a_column_sorts_both_ways(page: Browser) -> None:
    table = next(
        t for t in page.driver.find_elements(By.CSS_SELECTOR, ".board table") if t.is_displayed()
    )
    button = table.find_elements(By.CSS_SELECTOR, "th button")[4]  # MAE
    for order in (1, -1):
        button.click()
        cells = table.find_elements(By.CSS_SELECTOR, "tbody tr td:nth-child(5)")
        values = [float(cell.text) for cell in cells]
        assert values == sorted(values, reverse=order < 0)
        assert len(values) == 2 + len(plugins.names("baseline"))


def test_dark_and_light(page: Browser) -> None:
    body = page.driver.find_element(By.TAG_NAME, "body")
    colours = []
    for theme in ("dark", "light"):
        page.driver.find_element(By.CSS_SELECTOR, f"[data-theme-choice='{theme}']").click()
        colours.append(body.value_of_css_property("background-color"))
    assert colours[0] != colours[1]


def test_nothing_is_wider_than_a_phone_but_what_scrolls(page: Browser) -> None:
    page.driver.set_window_size(500, 900)  # the narrowest that headless Chromium gives
    try:
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= page.driver.execute_script("return window.innerWidth")
    finally:
        page.driver.set_window_size(1280, 900)
