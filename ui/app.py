"""The page, as Streamlit runs it: once from top to bottom for everything that happens. Start it with `ferret ui`."""

from __future__ import annotations

import time
from pathlib import Path

import streamlit as st

from ferret_core.images import ImageError
from services.client import NotFoundError, ServerError
from services.conversation import Conversation
from ui import components
from ui.chat import Chat
from ui.conversation_panel import conversation_panel, name_in_address
from ui.drawer import drawer
from ui.export import annotated_png, conversation_json
from ui.picture_panel import canvas_panel, example_chat, example_strip, examples, uploader
from ui.pictures import Picture
from ui.platform import as_text, connect, load_settings, served_models
from ui.session import Session

SETTLING_SECONDS = 12


def main() -> None:
    """Draws the page."""
    st.set_page_config("Ferret", "🐾", layout="wide", initial_sidebar_state="collapsed")
    st.html(Path(__file__).parent / "app.css")
    components.register()
    if "session" not in st.session_state:
        st.session_state.session = start_session()
    session: Session = st.session_state.session
    models: list[str] = []
    try:
        models = served_models()
    except ServerError as error:
        st.warning(f"{as_text(str(error))}. Drawing works; asking will once it is back.", icon=":material/cloud_off:")
    if session.notice:
        st.error(as_text(session.notice), icon=":material/error:")
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


def start_session() -> Session:
    """With the conversation that the address names, else with the first example."""
    session = Session([example_chat(examples()[0])])
    conversation_id = st.query_params.get("conversation")
    if not conversation_id:
        return session
    try:
        conversation = settled(conversation_id)
        data = connect().get_image(conversation.image_id)
        picture = Picture.open("picture", data, load_settings().max_image_bytes, max(conversation.size))
        session.open(Chat.restore(conversation, picture))
    except (NotFoundError, ImageError) as error:
        session.notice = f"The conversation could not be opened: {error}"
    except ServerError as error:
        st.error(f"The conversation could not be opened yet: {as_text(str(error))}", icon=":material/cloud_off:")
        st.button("Try again", type="primary")
        st.stop()
    return session


def settled(conversation_id: str) -> Conversation:
    """A conversation as it stands when the platform has noticed that the tab before is gone, and kept what had come."""
    for _ in range(SETTLING_SECONDS):
        conversation = connect().get_conversation(conversation_id)
        if not conversation.turns or conversation.turns[-1].answer or conversation.turns[-1].finish_reason:
            break
        time.sleep(1)
    return conversation


def header(session: Session) -> None:
    """The name, and what concerns the whole conversation."""
    chat = session.chat
    with st.container(horizontal=True, wrap=False, vertical_alignment="center", key="header"):
        st.markdown("#### Ferret &nbsp; :gray[:small[point, ask, see]]", width="stretch")
        st.button("New", icon=":material/add:", help="A new conversation about this picture", on_click=session.new)
        with st.popover("Share", icon=":material/ios_share:"):
            if chat.id:
                st.caption("Whoever has this link can read the conversation, and go on with it.")
                page = (st.context.url or "").rstrip("/")
                st.code(f"{page}/?conversation={chat.id}", language=None, wrap_lines=True)
            else:
                st.caption("Ask something first: then there is a link to this conversation.")
            picture, everything = "Picture with regions and boxes (PNG)", "Conversation (JSON)"
            st.download_button(picture, lambda: annotated_png(chat), "ferret.png", "image/png", on_click="ignore")
            st.download_button(
                everything, lambda: conversation_json(chat), "ferret.json", "application/json", on_click="ignore"
            )


main()
