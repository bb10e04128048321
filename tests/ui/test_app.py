"""The page's logic, without a browser and without a platform: Streamlit's AppTest and a client that says what it is told to."""

import queue
import re
import time
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import ui.platform
from ferret_core.answer import Finish, TextDelta, Usage
from ferret_core.geometry import Box, ImageSize
from ferret_core.grounding import find_spans
from services.client import NotFoundError, ServerError
from services.conversation import Conversation, ConversationTurn
from ui.examples import load_examples
from ui.settings import UISettings

APP = str(Path(ui.__file__).parent / "app.py")
FIRST = load_examples(UISettings())[0]
DONE = Finish("stop", Usage(prompt_tokens=1, completion_tokens=1))


class Stream:
    """An answer that the test writes."""

    def __init__(self, client, **request):
        self.request, self.events, self.closed = request, queue.Queue(), False
        client.streams.append(self)
        for event in client.scripts.pop(0) if client.scripts else client.script:
            self.events.put(event)

    def __iter__(self):
        while (event := self.events.get(timeout=20)) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Finish):
                return

    def close(self):
        self.closed = True
        self.events.put(None)


class Platform:
    """What a FerretClient would do."""

    names = ("playground",)

    def __init__(self):
        self.streams, self.created, self.ratings = [], [], []
        self.script = [TextDelta("Hello [1, 2, 3, 4]."), *find_spans("Hello [1, 2, 3, 4].", ImageSize(640, 480)), DONE]
        self.scripts = []  # of the next streams, before `script`
        self.kept, self.down, self.model = {}, False, ""

    def __call__(self, server, model="", **_):
        self.model = model
        return self

    def check(self):
        if self.down:
            raise ServerError(None, "no platform answers at there; start one with `ferret up`")

    def models(self):
        self.check()
        return list(self.names)

    def create_conversation(self, image, regions, history):
        self.check()
        self.created.append(list(history))
        return Conversation(f"id{len(self.created)}", "sha256:0", ImageSize(1, 1), {}, ())

    def stream(self, question, regions, *, conversation_id, turn, **sampling):
        return Stream(self, question=question, regions=regions, conversation=conversation_id, turn=turn, sampling=sampling)

    def get_conversation(self, conversation_id):
        self.check()
        if conversation_id not in self.kept:
            raise NotFoundError(None, f"conversation_id: no conversation {conversation_id!r}")
        return self.kept[conversation_id]

    def get_image(self, image_id):
        return FIRST.picture.data

    def rate_answer(self, *arguments):
        self.ratings.append(arguments)


@pytest.fixture
def platform(monkeypatch):
    platform = Platform()
    monkeypatch.setattr(ui.platform, "FerretClient", platform)
    st.cache_resource.clear()
    st.cache_data.clear()
    yield platform
    for stream in platform.streams:
        stream.close()
    st.cache_resource.clear()


def open_app(**query):
    app = AppTest.from_file(APP, default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    return run(app)


def run(app):
    app.run()
    assert not app.exception
    return app


def settle(app):
    """Until the answer has come to its end."""
    for _ in range(200):
        if not chat(app).busy:
            return run(app)
        time.sleep(0.02)
    raise AssertionError("still answering")


def press(app, label):
    next(button for button in app.button if button.label == label).click()
    return run(app)


def words(alert):
    """What people read: Markdown's escapes are not shown."""
    return re.sub(r"\\(\W|_)", r"\1", alert.value)


def ask(app, question):
    app.chat_input[0].set_value(question)
    return run(app)


def chat(app):
    return app.session_state["session"].chat


def test_it_opens_with_something_to_try(platform):
    app = open_app()
    assert chat(app).regions == FIRST.regions
    settle(press(app, FIRST.questions[0]))
    assert platform.streams[0].request["question"] == FIRST.questions[0]
    assert platform.streams[0].request["regions"] == FIRST.regions
    assert [turn.answer for turn in chat(app).turns] == ["Hello [1, 2, 3, 4]."]
    assert app.query_params["conversation"] == "id1"


def test_a_follow_up_goes_on_with_the_conversation(platform):
    app = settle(ask(open_app(), "one"))
    settle(ask(app, "two"))
    assert [(s.request["conversation"], s.request["turn"]) for s in platform.streams] == [("id1", None), ("id1", None)]
    assert len(platform.created) == 1


def test_questions_sent_too_early_wait_their_turn(platform):
    platform.script = []
    app = ask(ask(ask(open_app(), "one"), "two"), "three")
    for number in (1, 2, 3):
        assert len(platform.streams) == number
        platform.streams[-1].events.put(TextDelta("yes"))
        platform.streams[-1].events.put(DONE)
        app = settle(app)
    assert [turn.question for turn in chat(app).turns] == ["one", "two", "three"]


def test_nothing_is_asked_twice(platform):
    platform.script = []
    app = ask(ask(ask(open_app(), "one"), "one"), "two")
    app = ask(app, "two")
    assert chat(app).queue == ["two"]
    app = press(app, "Next: two")
    assert chat(app).queue == []
    platform.streams[0].events.put(TextDelta("yes"))
    platform.streams[0].events.put(DONE)
    app = press(settle(app), "Retry")
    assert len(chat(app).turns) == 1
    assert len(platform.streams) == 2


def test_stop_forgets_what_was_to_come(platform):
    platform.script = []
    app = press(ask(ask(open_app(), "one"), "two"), "Stop")
    assert [turn.state for turn in chat(app).turns] == ["stopped"]
    assert chat(app).queue == []


def test_what_is_gone_and_not_mentioned_is_not_sent(platform):
    app = settle(ask(open_app(), "What is [region0]?"))
    chat(app).draw({5: Box(1, 2, 3, 4)})
    app = settle(ask(app, "two"))
    assert sorted(platform.streams[-1].request["regions"]) == [0, 5]
    chat(app).draw({})
    settle(ask(app, "three"))
    assert sorted(platform.streams[-1].request["regions"]) == [0]


def test_stop_keeps_what_has_come(platform):
    platform.script = [TextDelta("It is")]
    app = ask(open_app(), "one")
    app = settle(press(app, "Stop"))
    assert platform.streams[0].closed
    (turn,) = chat(app).turns
    assert (turn.answer, turn.state) == ("It is", "stopped")
    platform.script = [DONE]
    settle(ask(app, "two"))
    assert platform.streams[1].request["turn"] is None


def test_retry_and_edit_replace_the_turn(platform):
    app = settle(ask(open_app(), "one"))
    app = settle(press(app, "Retry"))
    app = press(app, "Edit")
    app.text_area[0].set_value("other")
    app = settle(press(app, "Ask"))
    assert [(s.request["question"], s.request["turn"]) for s in platform.streams] == [("one", None), ("one", 0), ("other", 0)]
    app = press(app, "Edit")
    assert not press(app, "Cancel").text_area
    assert len(chat(app).turns) == 1


def test_errors_say_what_to_do_and_can_be_tried_again(platform):
    platform.script = [ServerError(None, "RESOURCE_EXHAUSTED: the platform is busy; try again in a few seconds")]
    app = settle(ask(open_app(), "one"))
    assert "try again in a few seconds" in words(app.error[0])
    platform.script = [TextDelta("yes"), DONE]
    app = settle(press(app, "Retry"))
    assert not app.error
    assert chat(app).turns[0].answer == "yes"


def test_a_platform_that_forgot_is_told_again(platform):
    app = settle(ask(open_app(), "one"))
    platform.scripts = [[NotFoundError(None, "conversation_id: no conversation 'id1'; create a new one")]]
    app = settle(ask(app, "two"))
    assert chat(app).turns[1].answer == "Hello [1, 2, 3, 4]."
    assert [turn.question for turn in platform.created[-1]] == ["one"]
    assert app.query_params["conversation"] == "id2"


def test_no_platform(platform):
    platform.down = True
    app = open_app()
    assert "start one with `ferret up`" in words(app.warning[0])
    app = settle(ask(app, "one"))
    assert "no platform answers" in words(app.error[0])
    platform.down = False
    assert not settle(press(app, "Retry")).error


def test_ratings_reach_the_platform(platform):
    app = settle(ask(open_app(), "one"))
    app.feedback[0].set_value(0)
    app = run(app)
    app.text_input[0].set_value("wrong")
    app = run(app)
    assert platform.ratings == [("id1", 0, "down", ""), ("id1", 0, "down", "wrong")]


def test_another_seed_each_time(platform):
    app = settle(ask(open_app(), "one"))
    settle(press(app, "Retry"))
    assert platform.streams[0].request["sampling"]["seed"] != platform.streams[1].request["sampling"]["seed"]


def test_an_unknown_model_does_not_lose_the_conversation(platform):
    app = settle(ask(open_app(), "one"))
    platform.scripts = [[NotFoundError(None, "model: no model 'x'")]]
    settle(ask(app, "two"))
    assert len(platform.created) == 1


def test_names_from_elsewhere_are_not_markdown(platform):
    app = open_app(conversation="x' ![t](https://example.org/p.png) [Log in](https://example.org) __y__")
    assert re.search(r"(?<!\\)[\[\]_!]", app.error[0].value) is None


def test_settings_reach_the_platform(platform):
    platform.names = ("small", "large")
    app = open_app()
    app.selectbox[0].set_value("large")
    app.slider(key="temperature").set_value(0.7)
    app.number_input(key="seed").set_value(9)
    settle(ask(run(app), "one"))
    sampling = platform.streams[0].request["sampling"]
    assert sampling == {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 256, "seed": 9}
    assert chat(app).turns[0].model == "large"


def test_several_conversations(platform):
    app = settle(ask(open_app(), "one"))
    app = press(app, "New")
    assert not chat(app).turns
    assert "conversation" not in app.query_params
    app = press(app, "Find")  # in place of the untouched one
    assert len(app.session_state["session"].chats) == 2
    app = settle(ask(app, "two"))
    assert chat(press(app, "one")).turns[0].question == "one"


def test_a_permalink_reopens_its_conversation(platform):
    size = FIRST.picture.size
    turn = ConversationTurn("What is [region3]?", "It is.", finish_reason="stop", rating="up", comment="good")
    platform.kept["abc"] = Conversation("abc", "sha256:0", size, {3: Box(1, 2, 3, 4)}, (turn,))
    app = open_app(conversation="abc")
    assert chat(app).regions == {3: Box(1, 2, 3, 4)}
    assert chat(app).next_number == 4
    assert app.feedback[0].value == 1
    assert app.text_input[0].value == "good"
    settle(ask(app, "two"))
    assert platform.streams[0].request["conversation"] == "abc"
    assert platform.streams[0].request["turn"] is None  # at the end, whoever else has gone on meanwhile


def test_a_stale_permalink(platform):
    app = open_app(conversation="gone")
    assert "no conversation 'gone'" in words(app.error[0])
    assert "conversation" not in app.query_params
    assert not run(app).error


def test_a_permalink_while_the_platform_is_away(platform):
    platform.kept["abc"] = Conversation("abc", "sha256:0", FIRST.picture.size, {}, ())
    platform.down = True
    app = open_app(conversation="abc")
    assert "could not be opened yet" in words(app.error[0])
    platform.down = False
    assert chat(press(app, "Try again")).id == "abc"
