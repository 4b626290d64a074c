"""The page in a real browser: it sorts, filters, switches its colours, fits a phone, and asks nothing of a network."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from harness.leaderboard import build_board
from harness.leaderboard.render import to_html
from harness.results import Record

BOARDS = [path.parent for path in sorted((Path(__file__).parents[2] / "leaderboards").glob("*/index.html"))]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, board_records: list[Record], tmp_path: Path) -> webdriver.Chrome:
    file = tmp_path / "index.html"
    file.write_text(to_html(build_board(board_records)), encoding="utf-8")
    browser.set_window_size(1280, 900)
    browser.get(file.as_uri())
    return browser


def shown(page: webdriver.Chrome, role: str = "method") -> list[str]:
    rows = page.find_elements(By.CSS_SELECTOR, f'tbody[data-role="{role}"] tr.row')
    return [row.find_element(By.CSS_SELECTOR, "th").text for row in rows if row.is_displayed()]


def heading(page: webdriver.Chrome, text: str) -> Any:
    headings = page.find_elements(By.CSS_SELECTOR, "#board thead th")
    return next(each for each in headings if each.text.startswith(text))


def test_the_page_needs_nothing_from_elsewhere_and_is_the_same_each_time(board_records: list[Record]) -> None:
    html = to_html(build_board(board_records))
    assert html == to_html(build_board(list(reversed(board_records))))
    addresses = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', html))
    assert addresses == {"data:,"}
    assert "@import" not in html and "url(http" not in html
    identities = re.findall(r'\bid="([^"]+)"', html)
    assert len(identities) == len(set(identities))


def test_names_cannot_smuggle_markup_into_the_page(board_records: list[Record]) -> None:
    from dataclasses import replace

    named = [replace(r, label="<b>x</b>") if r.label == "linear" else r for r in board_records]
    html = to_html(build_board(named))
    assert "<b>x</b>" not in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html


@needs_browser
def test_headings_sort_both_ways_within_the_groups(page: webdriver.Chrome) -> None:
    assert shown(page) == ["ties", "ota_ffg", "linear"]
    assert heading(page, "Average").get_attribute("aria-sort") == "descending"
    column = heading(page, "Model")
    column.find_element(By.TAG_NAME, "button").click()
    assert shown(page) == ["linear", "ota_ffg", "ties"]
    assert column.get_attribute("aria-sort") == "ascending"
    column.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert shown(page) == ["ties", "ota_ffg", "linear"]
    assert column.get_attribute("aria-sort") == "descending"
    assert shown(page, "expert") == ["math", "code"], "each group is sorted on its own"
    heading(page, "code").find_element(By.TAG_NAME, "button").click()
    assert shown(page)[0] == "ties", "scores are sorted with the highest first"
    assert heading(page, "Model").get_attribute("aria-sort") == "none"


@needs_browser
def test_rows_are_filtered_by_name_and_by_group(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "filter").send_keys("OTA")
    assert (shown(page), shown(page, "control"), shown(page, "base")) == (["ota_ffg"], ["ota_ffg_shuffled"], [])
    assert page.find_element(By.ID, "shown").text == "2 rows"
    page.find_element(By.CSS_SELECTOR, 'input[value="control"]').send_keys(Keys.SPACE)
    assert shown(page, "control") == []
    assert page.find_element(By.ID, "shown").text == "1 row"


@needs_browser
def test_a_row_leads_to_its_details_and_its_command(page: webdriver.Chrome) -> None:
    page.find_element(By.LINK_TEXT, "ties").click()
    details = page.find_element(By.ID, "row-key-method-ties")
    assert details.get_attribute("open") is not None
    assert details.find_element(By.CSS_SELECTOR, ".command code").text.startswith("graftbench run method=ties zoo=tiny")


@needs_browser
@pytest.mark.parametrize(("clipboard", "said"), [(True, "Command copied"), (False, "Command selected")])
def test_a_command_is_copied_or_where_that_is_forbidden_selected(
    page: webdriver.Chrome, clipboard: bool, said: str
) -> None:
    page.execute_script(
        "window.copied = null; Object.defineProperty(navigator, 'clipboard', {configurable: true, value: arguments[0]"
        " ? {writeText: async (text) => { window.copied = text; }} : undefined})",
        clipboard,
    )
    page.find_element(By.LINK_TEXT, "ties").click()
    details = page.find_element(By.ID, "row-key-method-ties")
    command = details.find_element(By.CSS_SELECTOR, ".command code").text
    details.find_element(By.CSS_SELECTOR, "button.copy").send_keys(Keys.ENTER)
    status = page.find_element(By.ID, "said")
    WebDriverWait(page, 10).until(lambda _: status.get_attribute("textContent") == said)
    taken = page.execute_script("return window.copied ?? String(getSelection())")
    assert taken.split() == command.split()


@needs_browser
def test_colours_follow_the_button(page: webdriver.Chrome) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))

    before = background()
    page.find_element(By.ID, "theme").click()
    assert background() != before
    page.find_element(By.ID, "theme").click()
    assert background() == before


@needs_browser
@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_committed_page_is_never_wider_than_the_screen(page: webdriver.Chrome, board: Path, width: int) -> None:
    page.get((board / "index.html").as_uri())
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    whole, visible = page.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width - 20 <= visible <= width, "a scroll bar takes some of it"
    assert whole == visible


@needs_browser
def test_names_stay_legible_on_a_phone(page: webdriver.Chrome) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    names = page.find_elements(By.CSS_SELECTOR, "tr.row > th, .matrix tbody th")
    sizes = [(name.text, name.size["width"], name.size["height"]) for name in names]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert len(sizes) > 5
    assert all(width >= 80 and height <= 100 for _, width, height in sizes), sizes


@needs_browser
def test_nothing_is_said_in_the_console(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "theme").click()
    heading(page, "Average").find_element(By.TAG_NAME, "button").click()
    assert page.get_log("browser") == []


@needs_browser
def test_charts_and_tables_have_names_for_screen_readers(page: webdriver.Chrome) -> None:
    charts = page.find_elements(By.CSS_SELECTOR, 'svg[role="img"]')
    assert len(charts) == 3, "bars of two capabilities, which make no radar, and costs"
    for chart in charts:
        assert all(
            page.execute_script("return document.getElementById(arguments[0]).textContent", name)
            for name in chart.get_attribute("aria-labelledby").split()
        )
    assert all(table.find_element(By.TAG_NAME, "caption") for table in page.find_elements(By.TAG_NAME, "table"))
    buttons = [button for button in page.find_elements(By.TAG_NAME, "button") if button.is_displayed()]
    assert len(buttons) > 5 and all(button.accessible_name for button in buttons)
