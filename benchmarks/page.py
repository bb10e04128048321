"""The page in a real browser: time to the picture, what crosses the websocket, drawing alone and among twenty other sessions.

make demo                                                   # in another terminal
python benchmarks/page.py --url http://localhost:8501
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from measure import hardware, write_result
from playwright.sync_api import Browser, Page, sync_playwright

from ferret_core.data.playground.demo import DEMO_PICTURE

ROUNDS = 5
OTHERS = 20

# A scribble of 200 places, as fast as the browser takes them: milliseconds from each event to the end of its handler, in
# which the region is drawn. It is on the screen with the next frame.
SCRIBBLE = """stage => {
    const canvas = stage.getRootNode()
    canvas.querySelector('button[title^="scribble"]').click()
    const {left, top, width, height} = stage.getBoundingClientRect()
    const times = []
    const send = (type, t) => {
        const started = performance.now()
        stage.dispatchEvent(new PointerEvent(type, {
            bubbles: true, pointerId: 1, button: 0, isPrimary: true,
            clientX: left + width * (0.1 + 0.8 * t), clientY: top + height * (0.5 + 0.3 * Math.sin(20 * t)),
        }))
        times.push(performance.now() - started)
    }
    stage.setPointerCapture = () => {}
    send("pointerdown", 0)
    for (let i = 1; i < 200; i++) send("pointermove", i / 200)
    send("pointerup", 1)
    return times
}"""


def open_page(browser: Browser, url: str) -> tuple[Page, float, list[int]]:
    """A page in a context of its own, seconds to its picture, and the sizes of what its websocket receives."""
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    received: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(len(frame))))
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(".stage image[href]", state="attached")
    return page, time.perf_counter() - started, received


def wire(browser: Browser, url: str) -> dict[str, int]:
    """Bytes that the server sends for a picture, a drawing, and an answer."""
    page, _, received = open_page(browser, url)

    def since(act: Callable[[], object]) -> list[int]:
        page.wait_for_timeout(1000)
        before = len(received)
        act()
        page.wait_for_timeout(1500)
        return received[before:]

    def ask() -> None:
        page.get_by_test_id("stChatInputTextArea").fill("What is [region0]?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Retry").wait_for()

    picture = since(lambda: page.locator("input[type=file]").set_input_files(DEMO_PICTURE))
    drawing = since(lambda: page.locator(".stage").evaluate(SCRIBBLE))
    answer = since(ask)
    page.context.close()
    return {
        "picture_file": DEMO_PICTURE.stat().st_size,
        "picture": sum(picture),
        "drawing": sum(drawing),
        "answer": sum(answer),
        "largest_message_of_answer": max(answer),
    }


def scribble(page: Page) -> dict[str, float]:
    """Milliseconds a canvas needs for each movement of the pointer."""
    times = sorted(page.locator(".stage").evaluate(SCRIBBLE))
    return {"median_ms": round(statistics.median(times), 3), "p99_ms": round(times[int(0.99 * len(times))], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8501", help="the page, already running")
    url = parser.parse_args().url
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        first = []
        for _ in range(ROUNDS + 1):
            page, seconds, _ = open_page(browser, url)
            first.append(seconds)
            page.context.close()
        result = {"seconds_to_picture": round(statistics.median(first[1:]), 2), "bytes": wire(browser, url)}

        page, _, _ = open_page(browser, url)
        scribble(page)
        alone = scribble(page)
        others = [open_page(browser, url)[0] for _ in range(OTHERS)]
        for other in others:  # a stroke every second, each reported to the server
            other.locator(".stage").evaluate(f"stage => {{ setInterval(() => ({SCRIBBLE})(stage), 1000) }}")
        page.wait_for_timeout(3000)
        result["drawing"] = {"alone": alone, f"with_{OTHERS}_others": scribble(page)}
        browser.close()
    print(write_result("page", {"hardware": hardware(), **result}).read_text())


if __name__ == "__main__":
    main()
