"""The drawer on the left: conversations of this tab, the model, and how it writes."""

from __future__ import annotations

import streamlit as st

from ui.platform import as_text, load_settings
from ui.session import Session


def drawer(session: Session, models: list[str]) -> None:
    """Conversations of this tab, the model, and how it writes."""
    with st.sidebar:
        st.subheader("Conversations")
        conversations(session)
        st.subheader("Settings")
        if len(models) > 1:
            st.selectbox("Model", models, key="model")
        sampling()


def conversations(session: Session) -> None:
    """Those that are open, by their first questions."""
    for number, chat in enumerate(session.chats):
        title = chat.turns[0].question if chat.turns else chat.picture.name
        here = number == session.current
        with st.container(horizontal=True, vertical_alignment="center", key=f"open-{number}"):
            st.image(chat.picture.thumbnail, width=48, alt="")
            name, key = as_text(title[:40]), f"show-{number}"
            st.button(name, key=key, type="tertiary", disabled=here, on_click=session.show, args=(number,))


def sampling() -> None:
    """How the next word is chosen; the keys are those of `ui.platform.SAMPLING`."""
    settings = load_settings()
    most = max(2.0, settings.temperature)
    st.slider("Temperature", 0.0, most, settings.temperature, 0.1, key="temperature", help="0 takes the likeliest word.")
    st.slider("Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", help="Only the likeliest words that together have this probability.")
    st.number_input("Most new tokens", 1, value=settings.max_new_tokens, key="max_new_tokens")
    again = "Same seed, same answer."
    st.number_input("Seed", 0, 2**31 - 1, settings.seed, key="seed", placeholder="another each time", help=again)
