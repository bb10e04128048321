"""What is kept of a conversation, in one piece, for a person who asks for their data."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

from ferret.v1 import ferret_pb2 as pb
from google.protobuf.json_format import MessageToJson
from PIL import Image


def archive(conversation: pb.Conversation, image: bytes | None, logs: Mapping[str, Sequence[str]]) -> bytes:
    """A ZIP of conversation.json, image.EXTENSION (if there is an image) and those logs, lines by file name, that have any."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("conversation.json", MessageToJson(conversation, preserving_proto_field_name=True, ensure_ascii=False))
        if image is not None:
            file.writestr(f"image.{(Image.open(io.BytesIO(image)).format or 'bin').lower()}", image)
        for name, lines in logs.items():
            if lines:
                file.writestr(name, "".join(f"{line}\n" for line in lines))
    return buffer.getvalue()
