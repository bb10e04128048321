"""The left half of the page: examples, the canvas, and questions to ask about what is drawn."""

from __future__ import annotations

import streamlit as st

from ferret_core.images import ImageError
from ui import components
from ui.chat import Chat
from ui.examples import Example, load_examples
from ui.pictures import Picture
from ui.platform import ask, load_settings
from ui.session import Session

GENERAL_QUESTIONS = ("Describe the image.",)


@st.cache_resource
def examples() -> list[Example]:
    """Pictures to try, read once."""
    return load_examples(load_settings())


def example_chat(example: Example) -> Chat:
    """A conversation about an example, ready to be asked."""
    return Chat(example.picture, dict(example.regions), example.questions)


def example_strip(session: Session) -> None:
    """Pictures to try."""

    def open_example(example: Example) -> None:
        session.open(example_chat(example))

    with st.container(horizontal=True, wrap=False, key="examples", gap="small"):
        for number, example in enumerate(examples()):
            with st.container(width=84, gap=None, key=f"example-{number}"):
                st.image(example.picture.thumbnail, width=84, alt=f"example picture: {example.title}")
                st.button(example.title, key=f"try-{number}", type="tertiary", on_click=open_example, args=(example,))


@st.fragment
def canvas_panel(session: Session) -> None:
    """The canvas, and questions to ask about what is drawn. Drawing reruns only this."""
    chat = session.chat
    components.canvas(chat, load_settings().max_regions)
    asked = False
    with st.container(horizontal=True):
        for question in suggestions(chat):
            asked |= st.button(question, key=f"ask-{question}", on_click=ask, args=(session, question))
    if asked:
        st.rerun()  # all of the page: the conversation is outside this fragment


def suggestions(chat: Chat) -> list[str]:
    """Questions to start with: the example's, and about the newest regions."""
    newest = sorted(chat.regions, reverse=True)[:2]
    questions = [*chat.suggestions, *(f"What is [region{number}]?" for number in newest), *GENERAL_QUESTIONS]
    return list(dict.fromkeys(questions))[:5]


def uploader(session: Session) -> None:
    """The way in for pictures of one's own; the canvas hands it what is pasted or dropped."""
    file = st.file_uploader(
        "Open a picture, or paste or drop one anywhere",
        type=["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"],
        key=f"upload-{session.uploads}",
    )
    if file is None:
        return
    session.uploads += 1
    settings = load_settings()
    try:
        session.open(Chat(Picture.open(file.name, file.getvalue(), settings.max_image_bytes, settings.max_image_side)))
    except ImageError as error:
        session.notice = f"{file.name}: {error}"
    st.rerun()
