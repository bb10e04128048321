"""The right half of the page: questions and answers, and the box to ask in."""

from __future__ import annotations

import time

import streamlit as st

from ferret_core.grounding import without_unfinished_box
from services.client import ServerError
from services.conversation import Rating
from ui import components
from ui.chat import Chat, LiveTurn
from ui.platform import as_text, ask, connect
from ui.session import Session

POLL_SECONDS = 0.2  # between two looks at an answer on its way
THUMBS: tuple[Rating, ...] = ("down", "up")  # as st.feedback numbers them


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
                    question_editor(session, turn, position)
                else:
                    components.message(turn.question, key=f"question-{turn.number}")
            with st.chat_message("assistant"):
                if turn.state == "running":
                    running_answer(session, turn)
                    continue
                answer(turn)
                with st.container(horizontal=True, vertical_alignment="center"):
                    if last:
                        ask_again(session, turn, position)
                    if turn.answer and chat.id:
                        thumbs(chat, turn, position)
                if turn.rating:
                    comment(chat, turn, position)
    if chat.busy:
        st.button("Stop", icon=":material/stop_circle:", on_click=chat.stop, width="stretch")
    waiting(chat)
    question = st.chat_input("Ask about the picture, e.g. What is [region0]?", key="question")
    if question:
        ask(session, question)
        st.rerun()
    if chat.queue and not chat.busy:  # it ended while this was drawn
        st.rerun()


def waiting(chat: Chat) -> None:
    """Questions that will be asked when the answer before has come, unless somebody thinks better of it."""
    for number, question in enumerate(chat.queue):
        name, key = f"Next: {as_text(question)}", f"waiting-{number}"
        st.button(name, key=key, type="tertiary", icon=":material/close:", on_click=chat.queue.remove, args=(question,))


@st.fragment(run_every=POLL_SECONDS)
def running_answer(session: Session, turn: LiveTurn) -> None:
    """An answer while it comes; nothing else of the page is rerun."""
    name_in_address(session.chat)
    answer(turn)
    if turn.state != "running":
        st.rerun()


def answer(turn: LiveTurn) -> None:
    """What has come of an answer, and how it ended if not well."""
    running = turn.state == "running"
    text = turn.answer if turn.state == "finished" else without_unfinished_box(turn.answer)
    components.message(text, turn.spans, key=f"answer-{turn.number}", copy=None if running else turn.answer)
    if running:
        st.caption(f"{'Writing' if turn.answer else 'Looking at the picture'} … {time.monotonic() - turn.started:.1f} s")
    elif turn.state == "failed":
        st.error(as_text(turn.error), icon=":material/error:")
    elif turn.state == "stopped":
        st.caption("Stopped.")
    elif turn.finish_reason == "length":
        st.caption("Cut off at the limit of new tokens; it can be raised in the settings.")


def ask_again(session: Session, turn: LiveTurn, position: int) -> None:
    """The last question once more, as it was or in other words."""
    again = (session, turn.question, position)
    st.button("Retry", type="tertiary", icon=":material/refresh:", on_click=ask, args=again)
    st.button("Edit", type="tertiary", icon=":material/edit:", on_click=setattr, args=(session, "editing", True))


def question_editor(session: Session, turn: LiveTurn, position: int) -> None:
    """The last question, to be asked in other words."""
    with st.form("editor", border=False):
        text = st.text_area("Question", turn.question, label_visibility="collapsed")
        with st.container(horizontal=True):
            asked = st.form_submit_button("Ask", type="primary")
            cancelled = st.form_submit_button("Cancel")
    if asked:
        ask(session, text, position)
    if asked or cancelled:
        session.editing = False
        st.rerun()


def thumbs(chat: Chat, turn: LiveTurn, position: int) -> None:
    """Whether an answer was good."""
    default = THUMBS.index(turn.rating) if turn.rating else None
    st.feedback("thumbs", key=f"rating-{turn.number}", default=default, on_change=rate, args=(chat, turn, position))


def comment(chat: Chat, turn: LiveTurn, position: int) -> None:
    """Words to go with a thumb."""
    st.text_input(
        "Comment",
        turn.comment,
        key=f"comment-{turn.number}",
        placeholder="What was good or wrong? (optional; Enter sends)",
        label_visibility="collapsed",
        on_change=rate,
        args=(chat, turn, position),
    )


def rate(chat: Chat, turn: LiveTurn, position: int) -> None:
    """Stores the thumb and the words that the page shows."""
    thumb = st.session_state[f"rating-{turn.number}"]
    words = st.session_state.get(f"comment-{turn.number}", turn.comment)
    try:
        chat.rate(connect(), position, None if thumb is None else THUMBS[thumb], words)
        st.toast("Thank you: your rating is stored.", icon=":material/check:")
    except ServerError as error:
        st.toast(f"The rating could not be stored: {as_text(str(error))}", icon=":material/error:")


def name_in_address(chat: Chat) -> None:
    """The address names the conversation on the page, so that reloading, or sending it to somebody, opens it again."""
    if chat.id and st.query_params.get("conversation") != chat.id:
        st.query_params["conversation"] = chat.id
    elif not chat.id and "conversation" in st.query_params:
        del st.query_params["conversation"]
