"""The page, as Streamlit runs it: once from top to bottom for everything that happens. Start it with `ferret ui`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import grpc
import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ferret_core.images import ImageError
from services.client import FerretClient, NotFoundError, ServerError
from ui import components
from ui.chat import Chat, Rating, Turn
from ui.examples import Example, load_examples
from ui.export import annotated_png, conversation_json
from ui.pictures import Picture
from ui.regions import from_canvas
from ui.session import Session, from_example
from ui.settings import UISettings

POLL_SECONDS = 0.2  # how often an answer on its way is looked at
QUICK_SECONDS = 5.0  # what the page itself waits for the platform
GENERAL_QUESTIONS = ("Describe the image.",)
STYLE = """<style>
.stMainBlockContainer { padding: 4.25rem 2rem 1rem; }
.st-key-examples { overflow-x: auto; scrollbar-width: thin; }
.st-key-examples > div { flex: none; }
.st-key-examples button { min-height: 0; font-size: 0.8rem; }
.stChatMessage .stVerticalBlock { gap: 0.25rem; }
@media (max-width: 640px) { .stMainBlockContainer { padding: 4.25rem 1rem 1rem; } .st-key-header small { display: none; } }
</style>"""


@st.cache_resource
def load_settings() -> UISettings:
    """Once for the whole process."""
    return UISettings.from_environment()


@st.cache_resource
def examples() -> list[Example]:
    """Once for the whole process."""
    return load_examples(load_settings())


@st.cache_resource
def connect(model: str = "", timeout: float | None = None) -> FerretClient:
    """One connection for all sessions that ask a model."""
    settings = load_settings()
    certificate = settings.tls_certificate.read_bytes() if settings.tls_certificate else None
    return FerretClient(
        settings.server,
        model=model,
        timeout=timeout or settings.timeout,
        credentials=grpc.ssl_channel_credentials(certificate) if settings.tls else None,
        token=os.environ.get("FERRET_TOKEN"),
    )


@st.cache_data(ttl=30, show_spinner=False)
def served_models() -> list[str]:
    """Names of the models; asked again now and then."""
    return connect(timeout=QUICK_SECONDS).models()


def start_session() -> Session:
    """With the conversation that the address names, else with the first example."""
    session = Session([from_example(examples()[0])])
    conversation_id = st.query_params.get("conversation")
    if conversation_id:
        client, settings = connect(timeout=QUICK_SECONDS), load_settings()
        try:
            conversation = client.get_conversation(conversation_id)
            data = client.get_image(conversation.image_id)
            picture = Picture.open("picture", data, settings.max_image_bytes, max(conversation.size))
            session.open(Chat.restore(conversation, picture))
        except (NotFoundError, ImageError) as error:
            session.notice = f"The conversation could not be opened: {error}"
        except ServerError as error:
            st.error(f"The conversation could not be opened yet: {error}", icon=":material/cloud_off:")
            st.button("Try again", type="primary")
            st.stop()
    return session


def name_in_address(chat: Chat) -> None:
    """The address names the conversation on the page, so that reloading, or sending it to somebody, opens it again."""
    if chat.id and st.query_params.get("conversation") != chat.id:
        st.query_params["conversation"] = chat.id
    elif not chat.id and "conversation" in st.query_params:
        del st.query_params["conversation"]


def ask(session: Session, question: str, position: int | None = None) -> None:
    """Asks the conversation on the page, or queues the question until the answer before has come."""
    if not question.strip():
        return
    if session.chat.busy:
        session.chat.queue.append(question)
        return
    session.editing = False
    session.chat.ask(
        question.strip(), connect(st.session_state.get("model", "")), position=position, is_read=presence(), **sampling()
    )


def presence() -> Callable[[], bool]:
    """Tells whether this session's browser is still connected."""
    context = get_script_run_ctx()
    if not context or not exists():
        return lambda: True
    return lambda: get_instance().is_active_session(context.session_id)


def sampling() -> dict[str, Any]:
    """The drawer's settings, as far as they were touched."""
    names = ("temperature", "top_p", "max_new_tokens", "seed")
    return {name: st.session_state[name] for name in names if st.session_state.get(name) is not None}


# ---- the picture ----


def example_strip(session: Session) -> None:
    """Pictures to try."""
    with st.container(horizontal=True, wrap=False, key="examples", gap="small"):
        for number, example in enumerate(examples()):
            with st.container(width=84, gap=None, key=f"example-{number}"):
                st.image(example.picture.thumbnail, width=84, alt=f"example picture: {example.title}")
                st.button(example.title, key=f"try-{number}", type="tertiary", on_click=session.try_example, args=(example,))


def uploader(session: Session) -> None:
    """The way in for pictures of one's own; the canvas hands it what is pasted or dropped."""
    settings = load_settings()
    file = st.file_uploader(
        "Open a picture, or paste or drop one anywhere",
        type=["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"],
        key=f"upload-{session.uploads}",
        max_upload_size=-(-settings.max_image_bytes // 2**20),
    )
    if file is None:
        return
    session.uploads += 1
    try:
        picture = Picture.open(file.name, file.getvalue(), settings.max_image_bytes, settings.max_image_side)
        session.open(Chat(picture))
    except ImageError as error:
        session.notice = f"{file.name}: {error}"
    st.rerun()


@st.fragment
def canvas_panel(session: Session) -> None:
    """The canvas, and questions to ask about what is drawn. Drawing reruns only this."""
    chat, limit = session.chat, load_settings().max_regions
    drawing = components.canvas(
        chat.picture, chat.regions, revision=chat.revision, first_number=chat.first_number, limit=limit, key="canvas"
    )
    if drawing and drawing.get("picture") == chat.picture.digest and drawing.get("revision") == chat.revision:
        chat.draw(from_canvas(drawing.get("regions"), chat.picture.size, limit))
    pressed = False
    with st.container(horizontal=True, key="suggestions"):
        for question in suggestions(chat):
            pressed |= st.button(question, key=f"ask-{question}", on_click=ask, args=(session, question))
    if pressed:
        st.rerun()


def suggestions(chat: Chat) -> list[str]:
    """Questions to start with: the example's, and about the newest regions."""
    newest = sorted(chat.regions)[-2:]
    own = [f"What is [region{number}]?" for number in reversed(newest)]
    return list(dict.fromkeys([*chat.suggestions, *own, *GENERAL_QUESTIONS]))[:5]


# ---- the conversation ----


def conversation_panel(session: Session) -> None:
    """Questions and answers, and the box to ask in."""
    chat = session.chat
    if chat.queue and not chat.busy:
        ask(session, chat.queue.pop(0))
    with st.container(height=480, key="messages", autoscroll=True):
        if not chat.turns:
            st.caption("Point at something in the picture, then ask: click a region's name to put it into your question.")
        for position, turn in enumerate(chat.turns):
            last = position == len(chat.turns) - 1
            with st.chat_message("user"):
                if last and session.editing:
                    question_editor(session, position, turn)
                else:
                    components.message(turn.question, key=f"message-{id(chat)}-{position}-question")
            with st.chat_message("assistant"):
                if turn.state == "running":
                    running_answer(session, turn, position)
                else:
                    answer(session, turn, position)
                    actions(session, turn, position, last)
    if chat.busy:
        st.button("Stop", icon=":material/stop_circle:", on_click=chat.stop, width="stretch", shortcut="Esc")
    question = st.chat_input("Ask about the picture, e.g. What is [region0]?", key="question")
    if question:
        ask(session, question)
        st.rerun()


@st.fragment(run_every=POLL_SECONDS)
def running_answer(session: Session, turn: Turn, position: int) -> None:
    """An answer while it comes; nothing else of the page is rerun."""
    name_in_address(session.chat)
    answer(session, turn, position)
    if turn.state != "running":
        st.rerun()


def answer(session: Session, turn: Turn, position: int) -> None:
    """What has come of an answer, and how it ended if not well."""
    raw = None if turn.state == "running" else turn.text
    components.message(turn.text, turn.spans, key=f"message-{id(session.chat)}-{position}-reply", raw=raw)
    if turn.state == "running":
        seconds = turn.elapsed
        st.caption(f"{'Writing' if turn.text else 'Looking at the picture'} … {seconds:.1f} s")
    elif turn.state == "failed":
        st.error(turn.error, icon=":material/error:")
    elif turn.state == "stopped":
        st.caption("Stopped.")
    elif turn.finish_reason == "length":
        st.caption("Cut off at the most new tokens; see the settings.")


def actions(session: Session, turn: Turn, position: int, last: bool) -> None:
    """What can be done about an answer."""
    chat = session.chat
    with st.container(horizontal=True, vertical_alignment="center"):
        if last:
            st.button(
                "Retry",
                key="retry",
                type="tertiary",
                icon=":material/refresh:",
                on_click=ask,
                args=(session, turn.question, position),
            )
            st.button(
                "Edit", key="edit", type="tertiary", icon=":material/edit:", on_click=setattr, args=(session, "editing", True)
            )
        if turn.text and chat.id:
            key = f"rating-{id(chat)}-{position}-{turn.started}"
            st.feedback(
                "thumbs",
                key=key,
                default={"up": 1, "down": 0, None: None}[turn.rating],
                on_change=rate,
                args=(session, turn, position, key),
            )
    if turn.rating and turn.text and chat.id:
        key = f"comment-{id(chat)}-{position}-{turn.started}"
        st.text_input(
            "Comment",
            turn.comment,
            key=key,
            placeholder="What was good or wrong? (optional; Enter sends)",
            label_visibility="collapsed",
            on_change=comment,
            args=(session, turn, position, key),
        )


def rate(session: Session, turn: Turn, position: int, key: str) -> None:
    """Stores a thumb."""
    rating: dict[int | None, Rating | None] = {1: "up", 0: "down", None: None}
    store_rating(session, position, rating[st.session_state[key]], turn.comment)


def comment(session: Session, turn: Turn, position: int, key: str) -> None:
    """Stores the words to a thumb."""
    store_rating(session, position, turn.rating, st.session_state[key])


def store_rating(session: Session, position: int, rating: Rating | None, words: str) -> None:
    """Through the platform."""
    try:
        session.chat.rate(connect(timeout=QUICK_SECONDS), position, rating, words)
        st.toast("Thank you: your rating is stored.", icon=":material/check:")
    except ServerError as error:
        st.toast(f"The rating could not be stored: {error}", icon=":material/error:")


def question_editor(session: Session, position: int, turn: Turn) -> None:
    """The last question, to be asked in other words."""
    with st.form("editor", border=False):
        text = st.text_area("Question", turn.question, label_visibility="collapsed")
        with st.container(horizontal=True):
            asked = st.form_submit_button("Ask", type="primary")
            cancelled = st.form_submit_button("Cancel")
    if cancelled:
        session.editing = False
    elif asked:
        ask(session, text, position)
    if asked or cancelled:
        st.rerun()


# ---- around them ----


def header(session: Session) -> None:
    """The name, and what concerns the whole conversation."""
    chat = session.chat
    with st.container(horizontal=True, wrap=False, vertical_alignment="center", key="header"):
        st.markdown("#### Ferret &nbsp; :gray[:small[point, ask, see]]", width="stretch")
        st.button(
            "New",
            icon=":material/add:",
            help="A new conversation about this picture",
            on_click=session.open,
            args=(Chat(chat.picture),),
        )
        with st.popover("Share", icon=":material/ios_share:"):
            if chat.id:
                st.caption("Whoever has this link can read the conversation, and go on with it.")
                st.code(f"{(st.context.url or '').rstrip('/')}/?conversation={chat.id}", language=None, wrap_lines=True)
            else:
                st.caption("Ask something first: then there is a link to this conversation.")
            st.download_button(
                "Picture with regions and boxes (PNG)",
                lambda: annotated_png(chat),
                "ferret.png",
                "image/png",
                on_click="ignore",
            )
            st.download_button(
                "Conversation (JSON)", lambda: conversation_json(chat), "ferret.json", "application/json", on_click="ignore"
            )


def drawer(session: Session, models: list[str]) -> None:
    """Conversations of this session, the model, and how it writes."""
    settings = load_settings()
    with st.sidebar:
        st.subheader("Conversations")
        for number, chat in enumerate(session.chats):
            title = chat.turns[0].question if chat.turns else chat.picture.name
            with st.container(horizontal=True, vertical_alignment="center", key=f"open-{number}"):
                st.image(chat.picture.thumbnail, width=48, alt="")
                st.button(
                    as_text(title[:40]),
                    key=f"show-{number}",
                    type="tertiary",
                    disabled=number == session.current,
                    on_click=session.show,
                    args=(number,),
                )
        st.subheader("Settings")
        if len(models) > 1:
            st.selectbox("Model", models, key="model")
        most = max(2.0, settings.temperature)
        st.slider("Temperature", 0.0, most, settings.temperature, 0.1, key="temperature", help="0 takes the likeliest word.")
        st.slider(
            "Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", help="Only the likeliest words that together have this probability."
        )
        st.number_input("Most new tokens", 1, value=settings.max_new_tokens, key="max_new_tokens")
        st.number_input("Seed", 0, 2**31, 0, key="seed", help="The same question with the same seed has the same answer.")


def as_text(words: str) -> str:
    """Markdown that shows just these words."""
    return re.sub(r"([^\w\s])", r"\\\1", words)


def main() -> None:
    """Draws the page."""
    st.set_page_config("Ferret", "🐾", layout="wide", initial_sidebar_state="collapsed")
    st.html(STYLE)
    components.register()
    if "session" not in st.session_state:
        st.session_state.session = start_session()
    session: Session = st.session_state.session
    models: list[str] = []
    try:
        models = served_models()
    except ServerError as error:
        st.warning(f"{error} Drawing works; asking will once it is back.", icon=":material/cloud_off:")
    if session.notice:
        st.error(session.notice, icon=":material/error:")
        session.notice = ""
    name_in_address(session.chat)
    drawer(session, models)
    left, right = st.columns([5, 4], gap="medium")
    with left:
        header(session)
        example_strip(session)
        components.picture_bytes(session.chat.picture)
        canvas_panel(session)
    with right:
        conversation_panel(session)
    uploader(session)


main()
