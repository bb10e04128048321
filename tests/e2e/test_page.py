"""The page as people meet it: a real Chromium, a real Streamlit server, the real platform with the bundled checkpoint."""

import asyncio
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from ferret_core.data.playground.demo import DEMO_PICTURE, DEMO_POINT
from ferret_core.geometry import Box, ImageSize, Point, Polygon, Scribble
from ferret_core.images import open_image
from ferret_core.prompt import Turn
from services.client import FerretClient
from tests.processes import FERRET, free_port, wait_until
from ui.settings import UISettings

pytestmark = pytest.mark.platform

CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
SIZE = ImageSize(*open_image(DEMO_PICTURE).size)
expect.set_options(timeout=20_000)  # the machine may be busy


@contextmanager
def serve_page(server: str, *arguments: str, base_path: str = ""):
    """The address of a page in front of a platform."""
    port = free_port()
    command = [*FERRET, "ui", "--server", server, "--port", str(port), "--base-path", base_path, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}{base_path}/_stcore/health")
            yield f"http://127.0.0.1:{port}{base_path}"
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")


@contextmanager
def tls_proxy(port: int, directory: Path):
    """The address of a proxy that speaks TLS to the outside and plain HTTP to a port, as nginx or a load balancer would."""
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "proxy.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "proxy.pem")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inside[1]), pump(inside[0], writer))

    started: Future[int] = Future()
    stop = threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context)
        started.set_result(server.sockets[0].getsockname()[1])
        while not stop.is_set():
            await asyncio.sleep(0.1)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))  # Playwright has a loop in this one
    thread.start()
    try:
        yield f"https://127.0.0.1:{started.result(10)}"
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def address(platform):
    with serve_page(platform.server) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium and not os.environ.get("CI"):
        pytest.skip("no Chromium; install one (apt install chromium), or name it in $CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def tab(browser: Browser, url: str, **options):
    """A browser tab without what other tests left; whatever goes wrong in its scripts fails the test."""
    options = {"viewport": {"width": 1400, "height": 1000}, "permissions": ["clipboard-read", "clipboard-write"]} | options
    context = browser.new_context(**options)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    try:
        page.goto(url)
        expect(page.locator(".stage image[href]")).to_be_attached()
        yield page
    finally:
        context.close()
    assert not errors


@pytest.fixture
def page(browser, address):
    with tab(browser, address) as page:
        open_picture(page)
        yield page


def open_picture(page: Page, source=DEMO_PICTURE) -> None:
    before = page.locator(".stage image").get_attribute("href")
    page.locator("input[type=file]").set_input_files(source)
    expect(page.locator(".stage image")).not_to_have_attribute("href", before)
    expect(page.locator(".chips .chip")).to_have_count(0)


def at(page: Page, x: float, y: float, size: ImageSize = SIZE) -> tuple[float, float]:
    """Where a pixel of the picture is on the screen."""
    box = page.locator(".stage").bounding_box()
    return box["x"] + x / size.width * box["width"], box["y"] + y / size.height * box["height"]


def drag(page: Page, *places: tuple[float, float]) -> None:
    page.locator(".stage").scroll_into_view_if_needed()
    page.mouse.move(*at(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*at(page, *place), steps=6)
    page.mouse.up()


def click(page: Page, x: float, y: float) -> None:
    page.locator(".stage").scroll_into_view_if_needed()
    page.mouse.click(*at(page, x, y))


def touch(page: Page, *places: tuple[float, float]) -> None:
    """One finger along some places."""
    page.locator(".stage").scroll_into_view_if_needed()
    session = page.context.new_cdp_session(page)
    for i, place in enumerate(places):
        x, y = at(page, *place)
        session.send(
            "Input.dispatchTouchEvent", {"type": "touchMove" if i else "touchStart", "touchPoints": [{"x": x, "y": y}]}
        )
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def use(page: Page, tool: str) -> None:
    page.get_by_role("button", name=re.compile(rf"^{tool} \(")).click()


def expect_names(page: Page, names: list[str]) -> None:
    expect(page.locator(".chips .chip button:first-child")).to_have_text(names)


def ask(page: Page, question: str) -> None:
    box = page.get_by_test_id("stChatInputTextArea")
    expect(box).to_be_enabled()
    box.fill(question)
    box.press("Enter")


def last_answer(page: Page) -> Locator:
    return page.get_by_test_id("stChatMessage").last.locator(".text")


def ask_about_the_waffle(page: Page) -> None:
    use(page, "point")
    click(page, *DEMO_POINT)
    ask(page, "What is [region0]?")
    answered(page)


def answered(page: Page, count: int = 1) -> None:
    """Waits for the end of the last of some answers."""
    expect(page.get_by_test_id("stChatMessage")).to_have_count(2 * count)
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


def conversation(page: Page, client: FerretClient):
    """What the platform keeps of the conversation on the page."""
    expect(page).to_have_url(re.compile(r"conversation=\w{32}"))
    return client.get_conversation(page.url.split("conversation=")[1])


def shown_boxes(page: Page, size: ImageSize = SIZE) -> list[list[float]]:
    """Boxes of answers as they are on the screen, in pixels of the picture."""
    stage = page.locator(".stage").bounding_box()
    boxes = []
    for rectangle in page.locator(".phrase > rect").all():
        box = rectangle.evaluate(
            "r => { const {x, y, width, height} = r.getBoundingClientRect(); return [x, y, width, height] }"
        )
        sx, sy = size.width / stage["width"], size.height / stage["height"]
        x, y = (box[0] - stage["x"]) * sx, (box[1] - stage["y"]) * sy
        boxes.append([x, y, x + box[2] * sx, y + box[3] * sy])
    return boxes


def close_to(region, tolerance: float = 1.5):
    return pytest.approx(list(region.coordinates(SIZE)), abs=tolerance)


DRAWN = {
    "point": ([(295, 255)], Point(295, 255)),
    "box": ([(240, 212), (350, 298)], Box(240, 212, 350, 298)),
    "scribble": ([(258, 246), (298, 262), (334, 268)], Scribble(((258, 246), (298, 262), (334, 268)), 16)),
    "polygon": ([(240, 212), (350, 212), (350, 298), (240, 298)], Polygon(((240, 212), (350, 212), (350, 298), (240, 298)))),
}


def draw_all(page: Page, move, tap) -> None:
    for kind, (places, _) in DRAWN.items():
        use(page, kind)
        if kind == "polygon":
            for place in [*places, places[0]]:  # the first corner again closes it
                tap(page, *place)
        elif kind == "point":
            tap(page, *places[0])
        else:
            move(page, *places)
    expect(page.locator(".chips .chip")).to_have_count(4)


def check_all(regions) -> None:
    assert list(regions) == [0, 1, 2, 3]
    for region, (_, expected) in zip(regions.values(), DRAWN.values(), strict=True):
        assert type(region) is type(expected)
    point, box, scribble, polygon = regions.values()
    assert point.coordinates(SIZE) == close_to(DRAWN["point"][1])
    assert box.coordinates(SIZE) == close_to(DRAWN["box"][1])
    assert scribble.points[0] == pytest.approx((258, 246), abs=1.5)
    assert scribble.points[-1] == pytest.approx((334, 268), abs=1.5)
    assert len(polygon.points) == 4
    assert polygon.coordinates(SIZE) == close_to(DRAWN["polygon"][1])


def test_what_is_drawn_with_the_mouse_is_what_the_platform_gets(page, client):
    draw_all(page, drag, click)
    expect_names(page, ["[region0]", "[region1]", "[region2]", "[region3]"])
    ask(page, "What is [region1]?")
    answered(page)
    kept = conversation(page, client)
    check_all(kept.regions)
    assert kept.size == SIZE


def test_what_is_drawn_with_a_finger_on_a_telephone(browser, address, client):
    with tab(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        open_picture(page)
        draw_all(page, touch, lambda page, x, y: touch(page, (x, y)))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ask(page, "What is [region0]?")
        answered(page)
        check_all(conversation(page, client).regions)


def test_words_and_boxes_answer_each_other(page, client):
    use(page, "point")
    click(page, *DEMO_POINT)
    page.get_by_test_id("stChatInputTextArea").fill("What is ")
    page.locator(".chips").get_by_role("button", name="[region0]", exact=True).click()
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("What is [region0] ")
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    answered(page)
    turn = conversation(page, client).turns[0]
    assert turn.question == "What is [region0]"
    (span,) = turn.spans

    chip = page.locator(".message .chip", has_text=span.phrase)
    assert shown_boxes(page) == [pytest.approx([span.box.x1, span.box.y1, span.box.x2, span.box.y2], abs=1.5)]
    assert "[" not in last_answer(page).inner_text()  # its numbers are drawn, not read

    chip.hover()
    expect(page.locator(".phrase.hot")).to_have_count(1)
    page.mouse.move(0, 0)
    expect(page.locator(".phrase.hot")).to_have_count(0)
    page.mouse.move(*at(page, span.box.x1 + 3, span.box.y1 + 3))
    expect(page.locator(".message .chip.hot")).to_have_text(span.phrase)
    page.locator(".message .chip", has_text="[region0]").hover()
    expect(page.locator(".region.hot")).to_have_attribute("data-region", "0")

    page.get_by_role("button", name="1 box").click()
    expect(page.locator(".phrase")).to_have_count(0)
    chip.click()  # hidden boxes show while they are pointed at
    page.get_by_role("button", name=re.compile("^[+] Use")).click()
    expect_names(page, ["[region0]", "[region1]"])
    ask(page, "What is [region1]?")
    answered(page, 2)
    kept = conversation(page, client)
    assert kept.regions[1].coordinates(SIZE) == pytest.approx([span.box.x1, span.box.y1, span.box.x2, span.box.y2], abs=0.1)
    assert span.phrase in kept.turns[1].answer


def test_editing_regions(page, client):
    stage = page.locator(".stage")
    use(page, "box")
    drag(page, (100, 100), (200, 180))
    drag(page, (300, 100), (360, 160))
    use(page, "select")
    drag(page, (150, 140), (170, 150))  # moves region0
    click(page, 170, 150)
    drag(page, (220, 190), (260, 230))  # its lower right corner
    stage.focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Control+z")
    click(page, 330, 130)
    page.keyboard.press("Delete")
    expect_names(page, ["[region0]"])
    page.keyboard.press("Control+z")
    expect_names(page, ["[region0]", "[region1]"])
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("p")
    page.keyboard.press("Enter")  # without a pointer, in the middle
    expect_names(page, ["[region0]", "[region2]"])  # a name is never used again
    page.keyboard.press("r")  # Streamlit would run the page anew
    page.keyboard.press("c")  # or offer to clear its cache
    expect(page.get_by_role("dialog")).to_have_count(0)
    ask(page, "What is [region2]?")
    answered(page)
    regions = conversation(page, client).regions
    assert regions[0].coordinates(SIZE) == pytest.approx([120, 110, 260, 230], abs=2)
    assert regions[2].coordinates(SIZE) == pytest.approx([SIZE.width / 2, SIZE.height / 2], abs=0.1)


def test_zoom_and_pan_keep_pixels_exact(page, client):
    use(page, "point")
    page.locator(".stage").scroll_into_view_if_needed()
    page.mouse.move(*at(page, *DEMO_POINT))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)  # zooms about the pointer: the place under it stays
    page.keyboard.up("Control")
    expect(page.locator(".stage")).not_to_have_attribute("viewBox", re.compile("^0 0 "))
    page.mouse.click(*at(page, *DEMO_POINT))
    page.keyboard.press("0")
    expect(page.locator(".stage")).to_have_attribute("viewBox", f"0 0 {SIZE.width} {SIZE.height}")
    ask(page, "What is [region0]?")
    answered(page)
    assert conversation(page, client).regions[0].coordinates(SIZE) == pytest.approx(DEMO_POINT, abs=1)


@pytest.fixture(scope="module")
def babbling(platform, tmp_path_factory):
    """The address of a page whose answers are very long."""
    config = tmp_path_factory.mktemp("ui") / "ui.yaml"
    config.write_text("temperature: 5.0\nmax_new_tokens: 1700\nseed: 23\n")  # long about either picture
    with serve_page(platform.server, "--config", str(config)) as address:
        yield address


@contextmanager
def long_answer(page: Page, platform) -> Iterator[None]:
    """It has begun; while thirty others are answered, too, it takes half a minute if nothing ends it."""
    with ExitStack() as others:
        for seed in range(30):
            other = others.enter_context(FerretClient(platform.server))
            other.set_image(DEMO_PICTURE)
            stream = other.stream("Describe the image.", temperature=5.0, seed=seed, max_new_tokens=1700)
            others.callback(stream.close)
            next(stream)
        ask(page, "Describe the image.")
        expect(last_answer(page)).not_to_be_empty()
        yield


def test_stop_keeps_what_has_come(browser, babbling, client, platform):
    with tab(browser, babbling) as page:
        with long_answer(page, platform):
            page.get_by_role("button", name="Stop").click()
            expect(page.get_by_text("Stopped.")).to_be_visible()
        assert platform.decoder_rests()
        turn = conversation(page, client).turns[0]
        assert turn.answer
        assert turn.finish_reason is None  # neither the model nor the limit ended it

        page.reload()  # the address names the conversation
        expect(page.get_by_text("Stopped.")).to_be_visible()
        expect(page.get_by_test_id("stChatMessage")).to_have_count(2)


def test_drawing_does_not_disturb_an_answer(browser, babbling, platform):
    with tab(browser, babbling) as page:
        open_picture(page)
        with long_answer(page, platform):
            use(page, "box")
            drag(page, (10, 10), (90, 90))
            length = len(last_answer(page).inner_text())
            expect(last_answer(page)).to_have_text(re.compile(f".{{{length + 1},}}", re.DOTALL))
            page.get_by_role("button", name="Stop").click()
            expect(page.get_by_text("Stopped.")).to_be_visible()
        expect_names(page, ["[region0]"])


def test_closing_the_tab_ends_the_answer(browser, babbling, client, platform):
    with ExitStack() as answering:
        with tab(browser, babbling) as page:
            answering.enter_context(long_answer(page, platform))
            kept = conversation(page, client)
        turn = wait_until(lambda: next((t for t in client.get_conversation(kept.id).turns if t.answer), None), 60)
    assert turn.finish_reason is None  # neither the model nor the limit ended it
    assert platform.decoder_rests()


def test_reload_reopens_the_conversation(page, client):
    use(page, "box")
    drag(page, (240, 212), (350, 298))
    ask(page, "What is [region0]?")
    answered(page)
    boxes = shown_boxes(page)
    text = last_answer(page).inner_text()
    page.reload()
    expect(last_answer(page)).to_have_text(text)
    expect(page.locator(".phrase")).to_have_count(1)
    assert shown_boxes(page) == [pytest.approx(box, abs=1) for box in boxes]
    expect_names(page, ["[region0]"])
    ask(page, "What kind of thing is it?")
    answered(page, 2)
    assert len(conversation(page, client).turns) == 2


def test_retry_edit_rate_and_copy(page, client):
    use(page, "point")
    click(page, *DEMO_POINT)
    page.get_by_role("button", name="What is [region0]?").click()
    answered(page)
    page.get_by_role("button", name="Retry").click()
    answered(page)
    assert len(conversation(page, client).turns) == 1
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Question").fill("Is [region0] a waffle?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("textbox", name="Question")).to_have_count(0)
    expect(page.get_by_test_id("stChatMessage").first).to_contain_text("a waffle?")
    answered(page)
    (turn,) = conversation(page, client).turns
    assert turn.question == "Is [region0] a waffle?"

    page.get_by_role("radio", name="Thumbs up").click()
    expect(page.get_by_text("your rating is stored")).to_be_visible()
    page.get_by_placeholder("What was good or wrong?").fill("just so")
    page.get_by_placeholder("What was good or wrong?").press("Enter")
    expect(page.get_by_text("your rating is stored").first).to_be_visible()
    for _ in range(50):
        (turn,) = conversation(page, client).turns
        if turn.comment:
            break
        time.sleep(0.1)
    assert (turn.rating, turn.comment) == ("up", "just so")

    page.get_by_role("button", name="Copy the answer").click()
    assert page.evaluate("navigator.clipboard.readText()") == turn.answer


def test_what_a_model_writes_is_shown_as_text(browser, address, client):
    nasty = (
        '<b onclick="alert(1)">bold</b> **stars** [link](https://example.com) <script>alert(2)</script>\n# head :smile: $x^2$'
    )
    client.set_image(DEMO_PICTURE)
    kept = client.create_conversation(history=[Turn("What is <i>this</i>?", nasty)])
    with tab(browser, f"{address}/?conversation={kept.id}") as page:
        message = last_answer(page)
        expect(message).to_be_visible()
        assert message.evaluate("e => e.textContent") == nasty
        assert message.locator("*").count() == 0
        question = page.get_by_test_id("stChatMessage").first.locator(".text")
        assert question.evaluate("e => e.textContent") == "What is <i>this</i>?"


TRANSFER = """(canvas, [way, bytes]) => {
    const data = new DataTransfer()
    data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", {type: "image/jpeg"}))
    const options = {clipboardData: data, dataTransfer: data, bubbles: true, composed: true, cancelable: true}
    if (way === "paste") document.dispatchEvent(new ClipboardEvent(way, options))
    else canvas.dispatchEvent(new DragEvent(way, options))
}"""


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_pictures_from_elsewhere(page, client, way):
    """A telephone's: turned by its EXIF, and larger than needed. What the model gets is what is drawn on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = io.BytesIO()
    Image.new("RGB", (3000, 1500), "teal").save(photo, "JPEG", exif=exif)
    page.locator(".canvas").evaluate(TRANSFER, [way, list(photo.getvalue())])
    expect(page.locator(".stage image")).to_have_attribute("width", "1024")
    expect(page.locator(".stage image")).to_have_attribute("height", "2048")
    ask(page, "Describe the image.")
    answered(page)
    assert conversation(page, client).size == ImageSize(1024, 2048)


def test_several_pictures_and_new_conversations(page, client):
    ask_about_the_waffle(page)
    first = page.url
    page.get_by_role("button", name="New", exact=True).click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(0)
    expect(page.locator(".chips .chip")).to_have_count(0)
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.locator(".stage image")).not_to_have_attribute("width", str(SIZE.width))
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_test_id("stSidebar").get_by_role("button", name="What is [region0]?").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(2)
    expect_names(page, ["[region0]"])
    assert page.url == first


def test_exports(page):
    ask_about_the_waffle(page)
    page.get_by_role("button", name="Share").click()
    expect(page.get_by_test_id("stCode")).to_contain_text(page.url.split("?")[1])
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("PNG")).click()
    with Image.open(download.value.path()) as image:
        assert image.size == SIZE
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("JSON")).click()
    content = json.loads(Path(download.value.path()).read_text())
    assert content["regions"] == [{"number": 0, "kind": "point", "points": [pytest.approx(DEMO_POINT, abs=1)]}]
    assert content["turns"][0]["spans"][0]["phrase"] == "a waffle"


def test_examples_are_answered_right(browser, address, client):
    """Whatever the presets of the strip ask, the bundled checkpoint knows."""
    with tab(browser, address) as page:
        for entry in json.loads((UISettings().examples / "examples.json").read_text()):
            page.get_by_test_id("stMainBlockContainer").get_by_role("button", name=entry["title"], exact=True).click()
            expect_names(page, [f"[region{region['number']}]" for region in entry["regions"]])
            for question, right in zip(entry["questions"], entry["answers"], strict=True):
                page.get_by_test_id("stMainBlockContainer").get_by_role("button", name=question, exact=True).click()
                expect(last_answer(page)).to_have_text(right)
            for _ in range(100):  # the last of two equal answers may still be on its way
                if len(conversation(page, client).turns) == len(entry["questions"]):
                    break
                page.wait_for_timeout(200)
            turns = conversation(page, client).turns
            assert [turn.question for turn in turns] == entry["questions"]


def test_dark_mode(browser, address):
    with tab(browser, address, color_scheme="dark") as page:
        color = page.locator(".canvas").evaluate("e => getComputedStyle(e).color")
        assert min(map(int, re.findall(r"\d+", color)[:3])) > 180, color


def test_an_image_crosses_the_wire_once(browser, address):
    with tab(browser, address) as page:
        received: list[int] = []
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(len(frame))))
        page.reload()
        expect(page.locator(".stage image[href]")).to_be_attached()
        open_picture(page)
        size = DEMO_PICTURE.stat().st_size
        assert sum(received) > size
        page.wait_for_timeout(1000)
        before = len(received)
        use(page, "box")
        drag(page, (240, 212), (350, 298))
        page.wait_for_timeout(1000)
        assert sum(received[before:]) < 5_000  # a drawing
        ask(page, "What is [region0]?")
        answered(page)
        assert max(received[before:]) < 5_000  # each change of the results
        assert sum(received[before:]) < size / 2


def test_behind_a_path_prefix_and_a_tls_proxy(browser, platform, tmp_path):
    with (
        serve_page(platform.server, base_path="/tools/ferret") as inside,
        tls_proxy(urlsplit(inside).port, tmp_path) as outside,
        tab(browser, f"{outside}/tools/ferret/", ignore_https_errors=True) as page,
    ):
        open_picture(page)
        ask_about_the_waffle(page)
        page.get_by_role("button", name="Share").click()
        expect(page.get_by_test_id("stCode")).to_contain_text(f"{outside}/tools/ferret/?conversation=")


def test_no_platform(browser):
    """Says what is wrong and what to do; nothing is lost."""
    with serve_page(f"localhost:{free_port()}") as address, tab(browser, address) as page:
        expect(page.get_by_test_id("stAlert").first).to_contain_text("start one with `ferret up`")
        use(page, "box")
        drag(page, (10, 10), (90, 90))
        ask(page, "What is [region0]?")
        expect(page.get_by_test_id("stAlert").last).to_contain_text("no platform answers")
        assert "Traceback" not in page.content()
        expect(page.get_by_role("button", name="Retry")).to_be_visible()
