"""Whatever a client sends: an answer, or an error that is the client's own. Never a crash, never INTERNAL.

Some 29,000 inputs, the same in every run: good ones with bytes changed, cut, doubled and spliced, and fields set to extremes.
"""

import asyncio
import io
import random
from contextlib import suppress

import grpc
import numpy as np
import pytest
from ferret.v1 import ferret_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from PIL import Image

from ferret_core.geometry import Box, Mask, Point, Polygon, Scribble
from ferret_core.images import FORMATS, ImageError, open_image
from services.calls import CallAbortedError
from services.wire import region_to_proto
from tests.scripted_platform import Decoder, Platform

IMAGES = 2500  # of each format
BYTES, FIELDS = 1500, 600  # of each request

PICTURE = Image.effect_noise((40, 30), 90).convert("RGB")
CLIENTS_OWN = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


def encoded(kind, **options):
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(data, chance):
    """One to a few changes."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 4, 16, 256)))
        match chance.randrange(6):
            case 0:
                data[start:end] = chance.randbytes(end - start)
            case 1:
                data[start:end] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = data[start:end] * chance.randrange(1, 4)
            case 4:
                data[start:start] = chance.randbytes(chance.randrange(1, 9))
            case 5:
                del data[start:]
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_pictures(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    originals = [encoded(kind)]
    if kind == "JPEG":
        originals += [encoded(kind, progressive=True, exif=exif, icc_profile=bytes(300)), encoded(kind, quality=5)]
    if kind in ("PNG", "WEBP"):
        originals.append(encoded(kind, exif=exif))
    if kind in ("GIF", "TIFF", "WEBP", "PNG"):
        originals.append(encoded(kind, save_all=True, append_images=[PICTURE.rotate(90)]))
    if kind == "TIFF":
        originals += [encoded(kind, compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")]
    chance, read = random.Random(kind), 0
    for _ in range(IMAGES):
        data = mutated(chance.choice(originals), chance)
        with suppress(ImageError):
            image = open_image(data, max_bytes=100_000, max_pixels=1_000_000)
            assert image.mode == "RGB"
            assert image.width * image.height <= 1_000_000
            read += 1
    assert 0 < read < IMAGES  # or nothing was tried


class OneWord(Decoder):
    """Whatever it is asked."""

    def decode(self, request):
        self.say("So", "stop")
        return super().decode(request)


class Call:
    def __init__(self):
        self.code = self.details = None

    def invocation_metadata(self):
        return ()

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    return Platform(tmp_path_factory.mktemp("home"), OneWord()).gateway


def seeds(image_id, conversation_id):
    """A request of each kind, with everything that can be in it."""
    shapes = [Point(5, 5), Box(1, 1, 9, 9), Polygon(((1, 1), (9, 1), (5, 9))), Scribble(((1, 1), (9, 9)), 3)]
    shapes.append(Mask.from_array(np.eye(30, 40)))
    regions = {number: region_to_proto(shape) for number, shape in enumerate(shapes)}
    question = "What is [region0], [region1], [region2], [region3] or [region4]?"
    turns = [pb.Turn(question="Why?", answer="A dog [0, 0, 500, 500].")]
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 7, "max_new_tokens": 16, "stop": ["x"]}
    about = {"regions": regions, "question": question, "sampling": sampling}
    return {
        "Chat": [
            pb.ChatRequest(image_id=image_id, history=turns, model="playground", **about),
            pb.ChatRequest(image_bytes=encoded("PNG"), **about),
            pb.ChatRequest(conversation_id=conversation_id, turn=0, **about),
        ],
        "UploadImage": [pb.UploadImageRequest(image_bytes=encoded("WEBP"))],
        "GetImage": [pb.GetImageRequest(image_id=image_id)],
        "ListModels": [pb.ListModelsRequest()],
        "CreateConversation": [pb.CreateConversationRequest(image_id=image_id, regions=regions, turns=turns)],
        "GetConversation": [pb.GetConversationRequest(conversation_id=conversation_id)],
        "ExportConversation": [pb.ExportConversationRequest(conversation_id=conversation_id)],
        "DeleteConversation": [pb.DeleteConversationRequest(conversation_id=conversation_id)],
        "RateAnswer": [pb.RateAnswerRequest(conversation_id=conversation_id, turn=0, rating=pb.RATING_UP, comment="Good")],
    }


EXTREMES = {
    FieldDescriptor.CPPTYPE_STRING: ["", "\0", "x" * 5000, "[region0]" * 50, "[region99999]", "</s>", "\U0010ffff", "../.."],
    FieldDescriptor.CPPTYPE_FLOAT: [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e30, 3e-39],
    FieldDescriptor.CPPTYPE_DOUBLE: [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300, 5e-324],
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 2**31, 2**32 - 1],
    FieldDescriptor.CPPTYPE_INT32: [0, -1, 2**31 - 1, -(2**31)],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**63, 2**64 - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, -1, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 77, -1],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
}  # fmt: skip


def distort(message, chance):
    """Sets one field of it, or of a message in it, to something extreme, or takes it away."""
    field = chance.choice(message.DESCRIPTOR.fields) if message.DESCRIPTOR.fields else None
    if field is None:
        return
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        number = chance.choice([*value, 0, 2**32 - 1])
        distort(value[number], chance)
    elif field.message_type and field.is_repeated:
        distort(chance.choice(value) if value and chance.random() < 0.8 else value.add(), chance)
    elif field.message_type:
        distort(value, chance)
    elif chance.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        value.extend(chance.choices(extremes(field, chance), k=chance.choice((1, 1, 2, 5000))))
    else:
        setattr(message, field.name, chance.choice(extremes(field, chance)))


def extremes(field, chance):
    if field.type == FieldDescriptor.TYPE_BYTES:
        return [b"", b"\xff" * 100, chance.randbytes(50)]
    return EXTREMES[field.cpp_type]


async def answered(gateway, rpc, request):
    """The status, and the message, of one call."""
    call = Call()
    try:
        answer = getattr(gateway, rpc)(request, call)
        if rpc == "Chat":
            async for _ in answer:
                pass
        else:
            await answer
    except CallAbortedError:
        return call.code, call.details
    return grpc.StatusCode.OK, ""


RPCS = [method.name for method in pb.DESCRIPTOR.services_by_name["FerretService"].methods]


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_requests(rpc, gateway):
    chance = random.Random(rpc)

    async def check():
        created = pb.CreateConversationRequest(image_bytes=encoded("PNG"), turns=[pb.Turn(question="Who?", answer="A dog")])
        conversation = (await gateway.CreateConversation(created, Call())).conversation
        originals = seeds(conversation.image.id, conversation.id)[rpc]
        for original in originals:
            assert await answered(gateway, rpc, original) == (grpc.StatusCode.OK, "")
        codes, parsed = [], 0
        for _ in range(BYTES):
            original = chance.choice(originals)
            try:
                request = type(original).FromString(mutated(original.SerializeToString(), chance))
            except DecodeError:
                continue  # gRPC itself refuses it
            parsed += 1
            codes.append(await answered(gateway, rpc, request))
        for _ in range(FIELDS):
            request = type(originals[0])()
            request.CopyFrom(chance.choice(originals))
            for _ in range(chance.choice((1, 1, 2, 5))):
                distort(request, chance)
            codes.append(await answered(gateway, rpc, request))
        for code, details in codes:
            assert code == grpc.StatusCode.OK or (code in CLIENTS_OWN and ": " in details), (code, details)
        assert parsed > 0
        if rpc != "ListModels":
            assert {code for code, _ in codes} & CLIENTS_OWN
        for original in originals:  # and it still works
            code, details = await answered(gateway, rpc, original)
            assert code in {grpc.StatusCode.OK} | CLIENTS_OWN, details

    asyncio.run(check())
