"""The page in a real browser: played, stepped, filtered, compared, and what is then really on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from viewer_helpers import LOST, TICK_NS, TICKS, Looking, looking, viewer_store

from episodes.store import EpisodeStore

BROWSER = chromium.find()
pytestmark = [
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium here; Debian, Ubuntu: apt-get install chromium, and run again"
    ),
    pytest.mark.slow,
]
TICK = TICK_NS / 1e9
# Brightness of a camera's right half: pictures were recorded with 2 * tick + 20.
_TICK_SHOWN = """(() => {{
  const c = document.querySelector('[data-pane="{pane}"] [data-camera="{camera}"] canvas');
  const p = c.getContext('2d').getImageData(c.width - 8, c.height >> 1, 1, 1).data;
  return (p[1] - 20) / 2; }})()"""
_COLOURS = """(() => {{
  const c = document.querySelector('{selector}');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, found = new Set();
  for (let i = 0; i < d.length; i += 4) found.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]);
  return found.size; }})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    assert BROWSER is not None
    with chromium.Page(BROWSER, tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looking]:
    with looking(viewer_store(tmp_path_factory.mktemp("page") / "store")) as found:
        yield found


def opened(tab: chromium.Page, door: Looking, fragment: str) -> chromium.Page:
    """The page with the link used up, its episodes loaded."""
    tab.errors.clear()
    tab.goto("about:blank?")
    tab.goto(door.links[-1] + fragment)
    tab.until("window.viewer && viewer.shown.a && document.querySelector('.chart i').textContent !== ''")
    return tab


def test_what_goes_wrong_on_a_page_is_noticed(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#a=good")
    for wrong in ("console.error('spoken')", "setTimeout(() => nothing.there, 0)", "fetch('/absent')"):
        page.errors.clear()
        page.js(f"{{ {wrong}; 1 }}")
        page.until("true")
        for _ in range(100):
            page.js("new Promise(done => setTimeout(done, 10))")
            if page.errors:
                break
        assert page.errors, wrong
    # Nothing may be reached but this server.
    assert page.js("fetch('http://127.0.0.1:9/').then(() => 'came', () => 'refused')") == "refused"
    assert any("Content Security Policy" in e for e in page.errors)


def shown_tick(tab: chromium.Page, camera: str, pane: str = "a") -> float:
    return float(tab.js(_TICK_SHOWN.format(pane=pane, camera=camera)))


def test_it_plays_in_capture_time_and_shows_what_is_missing(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#a=good")
    page.until("viewer.shown.a.cameras.every(c => c.shown === 0)")
    assert page.js(_COLOURS.format(selector='[data-chart="elbow_flex"] canvas')) > 20
    assert page.js(_COLOURS.format(selector="[data-timeline]")) > 3
    page.key(" ")
    page.until("viewer.player.playing && viewer.player.time > 0.8")
    page.until("!viewer.player.playing")  # the end
    assert page.js("viewer.player.time") == pytest.approx((TICKS - 1) * TICK, abs=1e-3)
    assert page.js("viewer.shown.a.cameras.every(c => c.painted > 20)")
    # In the middle of the gap "front" shows its last frame and says so; "wrist" has its own frame.
    middle = LOST[4]
    page.js(f"viewer.player.seek({middle * TICK})")
    page.until(f"viewer.shown.a.cameras[1].shown === {middle}")
    page.until(f"viewer.shown.a.cameras[0].shown === {LOST[0] - 1}")
    assert shown_tick(page, "wrist") == pytest.approx(middle, abs=1.5)
    assert shown_tick(page, "front") == pytest.approx(LOST[0] - 1, abs=1.5)
    assert page.js("document.querySelector('[data-camera=front] .badge').textContent").startswith("gap")
    assert page.errors == []


def test_a_screenshot_shows_the_page(tab: chromium.Page, door: Looking, tmp_path: Path) -> None:
    page = opened(tab, door, "#a=corrected")
    page.until("viewer.shown.a.cameras.every(c => c.shown === 0)")
    page.until(_COLOURS.format(selector='[data-chart="gripper"] canvas') + " > 20")
    page.screenshot(tmp_path / "page.png")
    png = cv2.imread(str(tmp_path / "page.png"))
    assert png is not None
    assert png.shape == (800, 1280, 3)
    assert len(np.unique(png.reshape(-1, 3), axis=0)) > 100
    for selector in ('[data-id="corrected"] .id', "[data-camera=wrist] canvas", "[data-timeline]"):
        x, y, width, height = page.js(
            f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height].map(Math.round); })()"
        )
        part = png[max(0, y) : y + height, max(0, x) : x + width].reshape(-1, 3)
        assert len(part), selector
        assert len(np.unique(part, axis=0)) > 3, f"{selector} is blank on the picture"


def test_frames_and_flags_are_stepped_through_by_keys(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#a=corrected")
    page.key("]")
    page.until(f"Math.abs(viewer.player.time - {15 * TICK}) < 0.002")
    page.key("]")
    page.until(f"Math.abs(viewer.player.time - {60 * TICK}) < 0.002")
    page.until("viewer.shown.a.cameras[1].shown === 60")
    page.key("ArrowRight")
    page.until("viewer.shown.a.cameras[1].shown === 61")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    page.until("viewer.shown.a.cameras[1].shown === 59")
    assert shown_tick(page, "wrist") == pytest.approx(59, abs=1.5)
    page.key("[")
    page.until(f"Math.abs(viewer.player.time - {15 * TICK}) < 0.002")
    page.js(f"viewer.player.seek({20 * TICK})")
    page.until("document.querySelector('[data-camera=wrist] .badge').textContent === 'repeated'")
    # Over the flag in the timeline: its kind, its score, its evidence.
    _, y = page.middle("[data-timeline]")
    box = "document.querySelector('[data-timeline]').getBoundingClientRect()"
    left, width = page.js(f"[{box}.x, {box}.width]")
    page.mouse(left + 10 + (width - 20) * 62 / (TICKS - 1), y)
    page.until("!document.getElementById('tip').hidden")
    words = page.js("document.getElementById('tip').textContent")
    assert all(word in words for word in ("stall", "0.75", "elbow_flex"))
    assert page.errors == []


def test_the_list_is_filtered_by_sql(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#where=" + "interventions%20%3E%200")
    assert page.js("viewer.shown.a.data.id") == "corrected"
    page.click("#chips .chip")  # all
    page.until("document.querySelectorAll('.episode').length === 6")
    page.js("document.getElementById('where').value = ''")
    page.click("#where")
    page.call("Input.insertText", text="outcome = 'failure'")
    page.call(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="Enter",
        code="Enter",
        windowsVirtualKeyCode=13,
        text="\r",
    )
    page.until("document.querySelectorAll('.episode').length === 2")
    page.click('[data-id="blind"] .id')
    page.until("viewer.shown.a.data.id === 'blind'")
    assert "no cameras" in page.js("document.getElementById('panes').textContent")
    page.until(_COLOURS.format(selector='[data-chart="gripper"] canvas') + " > 20")
    assert page.errors == []
    page.js("viewer.list.apply('no such column')")
    page.until("!document.getElementById('filter-error').hidden")
    assert "such" in page.js("document.getElementById('filter-error').textContent")


def test_two_episodes_are_compared_aligned_at_a_flag(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#a=good")
    page.key("c")
    page.click('[data-id="corrected"] .id')
    page.until("viewer.shown.b && viewer.shown.b.data.id === 'corrected'")
    page.js("(() => { const s = document.getElementById('align'); s.value = 'kind:stall';"
            "s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    # The stall begins at tick 30 of one and at tick 60 of the other: both are shown at once.
    page.until("viewer.shown.a.cameras[1].shown === 30 && viewer.shown.b.cameras[1].shown === 60")
    assert shown_tick(page, "wrist", "a") == pytest.approx(30, abs=1.5)
    assert shown_tick(page, "wrist", "b") == pytest.approx(60, abs=1.5)
    page.until(_COLOURS.format(selector='[data-pane="b"] [data-chart="gripper"] canvas') + " > 20")
    assert "b=corrected" in page.js("location.hash")
    page.click("#uncompare")
    page.until("!viewer.shown.b && document.querySelectorAll('.pane').length === 1")
    assert page.errors == []


def test_dark_and_light(tab: chromium.Page, door: Looking) -> None:
    page = opened(tab, door, "#a=good")
    ground = "getComputedStyle(document.body).backgroundColor"
    first = page.js(ground)
    page.click("#theme")
    assert page.js(ground) != first
    page.click("#theme")
    assert page.js(ground) == first


def test_an_empty_store_says_what_to_do(tab: chromium.Page, tmp_path: Path) -> None:
    EpisodeStore.open(tmp_path / "empty").close()
    with looking(tmp_path / "empty") as door:
        tab.errors.clear()
        tab.goto(door.links[-1])
        tab.until("document.getElementById('empty').textContent.includes('ratchet record')")
        assert tab.js("document.getElementById('transport').hidden")
        assert tab.errors == []
