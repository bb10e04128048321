"""The platform, as the page meets it: what it is told, the connections, the questions."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from services.client import FerretClient, ServerError, tls_credentials
from ui.session import Session
from ui.settings import UISettings

QUICK_SECONDS = 5.0  # what the page itself waits for the platform
SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed")
"""Settings of the drawer, by the keys of their widgets."""


@st.cache_resource
def load_settings() -> UISettings:
    """The page's settings, read once."""
    return UISettings.from_environment()


@st.cache_resource
def connect(model: str = "", timeout: float = QUICK_SECONDS) -> FerretClient:
    """One connection for all sessions that ask a model."""
    settings = load_settings()
    files = settings.tls_certificate, settings.tls_client_certificate, settings.tls_client_key
    return FerretClient(
        settings.server,
        model=model,
        timeout=timeout,
        credentials=tls_credentials(*files) if settings.tls else None,
        token=os.environ.get("FERRET_TOKEN", "").strip() or None,
    )


@st.cache_data(ttl=30, show_spinner=False)
def served_models() -> list[str]:
    """Names of the models, asked again now and then. Raises `ServerError`."""
    return connect().models()


def ask(session: Session, question: str, position: int | None = None) -> None:
    """Asks the conversation on the page, or queues the question until the answer before has come.

    Nothing is asked twice because somebody clicked twice.
    """
    chat, question = session.chat, question.strip()
    if not question:
        return
    if chat.busy:
        if position is None and question not in (chat.turns[-1].question, *chat.queue):
            chat.queue.append(question)
        return
    session.editing = False
    sampling = {name: st.session_state[name] for name in SAMPLING}
    if sampling["seed"] is None:
        sampling["seed"] = secrets.randbelow(2**31)
    client = connect(_model(), load_settings().timeout)
    chat.ask(question, client, position=position, present=_browser_present(), **sampling)


def _model() -> str:
    """The one chosen in the drawer, or the only one."""
    try:
        return st.session_state.get("model") or served_models()[0]
    except ServerError:
        return ""  # the answer will say why


def _browser_present() -> Callable[[], bool]:
    """Tells whether this session's browser is still connected."""
    context = get_script_run_ctx()
    # Without a server, as in AppTest, there is nobody to go away.
    return lambda: not context or not exists() or get_instance().is_active_session(context.session_id)


def as_text(words: str) -> str:
    """Markdown that shows just these words: names, questions and errors come from all over the world."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", words)
