"""The page in a real browser (Debian's Chromium), with real routes behind it: drawn on, clicked through, looked at."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from serving_helpers import app, ensemble

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (apt install chromium-driver)"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app({"max_body": 8.0}), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> Iterator[webdriver.Chrome]:
    browser.set_window_size(1200, 900)
    browser.get(url)
    wait(browser, "idle")
    WebDriverWait(browser, 10).until(lambda b: find(b, "model").text == "digits")
    yield browser
    complaints = [entry["message"] for entry in browser.get_log("browser") if "400" not in entry["message"]]
    assert complaints == []


def find(browser: webdriver.Chrome, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def wait(browser: webdriver.Chrome, state: str) -> None:
    body = browser.find_element(By.TAG_NAME, "body")
    WebDriverWait(browser, 15).until(lambda _: body.get_attribute("data-state") == state)


def draw(browser: webdriver.Chrome) -> None:
    pen = ActionChains(browser, duration=20).move_to_element_with_offset(find(browser, "canvas"), -60, -80)
    pen.click_and_hold().move_by_offset(110, 10).move_by_offset(-60, 140).release().perform()


def votes(browser: webdriver.Chrome) -> list[int]:
    return [int(cell.get_attribute("data-label") or -1) for cell in find(browser, "votes").find_elements(By.XPATH, "*")]


def test_what_is_drawn_is_answered_with_every_members_vote(page: webdriver.Chrome, tmp_path: Path) -> None:
    draw(page)
    wait(page, "answered")
    assert find(page, "answer").text.split()[0].rstrip("–") in ensemble().spec.class_names
    assert len(votes(page)) == ensemble().members and set(votes(page)) <= {0, 1, 2, 3}
    assert find(page, "verdict").text and "%" in find(page, "uncertainty").text
    assert len(find(page, "bars").find_elements(By.XPATH, "*")) == 4
    page.save_screenshot(str(tmp_path / "page.png"))
    colours = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50  # something is painted
    find(page, "clear").click()
    wait(page, "idle")
    assert votes(page) == [-1] * ensemble().members


def test_a_file_is_answered_as_the_ensemble_does_and_strategies_switch(page: webdriver.Chrome, tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    Image.fromarray(pixels).save(tmp_path / "a.png")
    find(page, "file").send_keys(str(tmp_path / "a.png"))
    wait(page, "answered")
    images = ensemble().spec.preprocess.read(tmp_path / "a.png")
    tally = ensemble().tally(images)
    names = ensemble().spec.class_names
    assert votes(page) == tally.label_MB[:, 0].tolist()
    assert names[int(tally.prediction("abend").label_B)] in find(page, "answer").text
    page.execute_script("document.getElementById('strategy-sbend').click()")
    WebDriverWait(page, 10).until(lambda b: "of the votes" in find(b, "probability").text)
    assert names[int(tally.prediction("sbend").label_B)] in find(page, "answer").text
    assert "25.0 %" in find(page, "accuracy").text
    assert find(page, "version").text == ensemble().manifest.digest[:12]  # as answers name it


def test_a_distance_is_shown_beside_what_is_usual(page: webdriver.Chrome) -> None:
    draw(page)
    wait(page, "answered")
    assert not find(page, "far").is_displayed()  # this ensemble measures none
    answer = {"label": 0, "class": "nought", "probability": 1.0, "probabilities": [1, 0, 0, 0], "votes": [5, 0, 0, 0]}
    answer |= {"entropy": 0.0, "mutual_information": 0.0, "disagreement": 0.0, "member_labels": [0] * 5}
    whole = {"class_names": list(ensemble().spec.class_names), "strategy": "abend"}
    index = {"median": 0.01, "q95": 0.05, "q99": 0.1}
    show = "import('/page/answer.js').then(({show}) => show(arguments[0], arguments[1])).then(arguments[2])"
    for distance, words in ((0.001, "as usual"), (0.02, "of half"), (0.07, "of 95 %"), (0.2, "of 99 %")):
        page.execute_async_script(show, whole | {"predictions": [answer | {"distance": distance}]}, index)
        assert words in find(page, "far").text and f"{distance:g}" in find(page, "far").text


def test_what_cannot_be_read_is_said_in_place(page: webdriver.Chrome, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    find(page, "file").send_keys(str(tmp_path / "broken.png"))
    wait(page, "failed")
    assert find(page, "error").is_displayed() and "image" in find(page, "error").text
    find(page, "clear").click()
    draw(page)
    wait(page, "answered")
    assert not find(page, "error").is_displayed()


def test_a_phone_shows_it_in_one_column(page: webdriver.Chrome) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        box = find(page, "canvas").rect
        points = [(box["x"] + 40 + 20 * i, box["y"] + 60 + 15 * i) for i in range(8)]
        for kind, where in [("touchStart", points[0]), *(("touchMove", p) for p in points[1:]), ("touchEnd", None)]:
            touches = [{"x": where[0], "y": where[1]}] if where else []
            page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
            time.sleep(0.01)
        wait(page, "answered")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        assert find(page, "votes").rect["y"] > box["y"] + box["height"]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_routes_are_shown_without_another_host(browser: webdriver.Chrome, url: str) -> None:
    browser.get(f"{url}/docs")
    WebDriverWait(browser, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".opblock"))
    assert "/predict" in browser.find_element(By.TAG_NAME, "body").text
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded and all(name.startswith(url) for name in loaded)
