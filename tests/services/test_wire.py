"""Messages to types and back, and what goes over the wire."""

import pytest
import torch
from ferret.v1 import ferret_pb2, regions_pb2, sampling_pb2
from hypothesis import given
from hypothesis import strategies as st

from ferret_core.answer import Finish, TextDelta, Usage
from ferret_core.engine import Delta, SamplingParams
from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, RegionError, Scribble
from ferret_core.grounding import Span
from ferret_core.prompt import Turn
from services.conversation import Conversation, ConversationTurn
from services.stage_wire import delta_from_proto, delta_to_proto, sampling_from_proto, tensor_from_proto, tensor_to_proto
from services.wire import (
    RATINGS_TO_PROTO,
    REASONS_TO_PROTO,
    conversation_from_proto,
    event_from_proto,
    event_to_proto,
    region_from_proto,
    region_to_proto,
    sampling_to_proto,
    span_to_proto,
    turn_to_proto,
)

SPAN = Span(phrase="a dog", box=Box(1, 2, 3, 4), start=0, end=5, box_start=6, box_end=18)

number = st.floats(0, 5000)
vertices = st.lists(st.tuples(number, number), min_size=1, max_size=20).map(tuple)
regions = st.one_of(
    st.builds(Point, number, number),
    st.builds(Box, number, number, number, number),
    st.builds(Polygon, vertices),
    st.builds(Scribble, vertices, st.floats(0.1, 100)),
    st.builds(Mask, st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000)), st.text("0123456789abc", max_size=40)),
)


@given(regions)
def test_regions_survive(region):
    assert region_from_proto(regions_pb2.Region.FromString(region_to_proto(region).SerializeToString())) == region


def test_a_region_without_a_shape_is_refused():
    with pytest.raises(RegionError, match="one of point, box"):
        region_from_proto(regions_pb2.Region())


def test_a_scribble_is_small_on_the_wire():
    scribble = Scribble(tuple((float(i), float(i)) for i in range(80)), 8)
    assert len(region_to_proto(scribble).SerializeToString()) <= 2048


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_survive_bit_for_bit(dtype):
    tensor = torch.randn(1, 7, 5).to(dtype)
    assert torch.equal(tensor_from_proto(tensor_to_proto(tensor)), tensor)


def test_sampling_defaults_are_the_servers():
    assert sampling_from_proto(sampling_pb2.Sampling()) == SamplingParams()
    settings = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 9, "stop": ("a", "b")}
    assert sampling_from_proto(sampling_to_proto(**settings)) == SamplingParams(**settings)
    assert sampling_from_proto(sampling_to_proto(temperature=0.0)).temperature == 0
    with pytest.raises(ValueError, match="max_new_tokens"):
        sampling_from_proto(sampling_to_proto(max_new_tokens=0))


def test_events_survive():
    usage = Usage(prompt_tokens=3, completion_tokens=2, dropped_turns=1)
    for event in (TextDelta("a dög"), SPAN, Finish("length", usage)):
        assert event_from_proto(event_to_proto(event, "sha256:x", "m")) == event
    for delta in (Delta("a", 1), Delta("", 2, "stop")):
        assert delta_from_proto(delta_to_proto(delta)) == delta


def test_conversations_survive():
    asked = ConversationTurn("q", "a dog", spans=(SPAN,), finish_reason="length", model="m", rating="down", comment="a cat")
    conversation = Conversation(
        "c", "sha256:x", ImageSize(640, 480), {2: Point(1, 2), 7: Box(1, 2, 3, 4)}, (asked, ConversationTurn("r"))
    )
    message = ferret_pb2.Conversation(
        id="c",
        image={"id": "sha256:x", "width": 640, "height": 480},
        regions={number: region_to_proto(region) for number, region in conversation.regions.items()},
        turns=[
            ferret_pb2.Turn(
                id="random",
                question="q",
                answer="a dog",
                spans=[span_to_proto(SPAN)],
                finish_reason=REASONS_TO_PROTO["length"],
                model="m",
                rating=RATINGS_TO_PROTO["down"],
                comment="a cat",
            ),
            ferret_pb2.Turn(question="r"),
        ],
    )
    assert conversation_from_proto(message) == conversation


def test_turns_of_a_conversation_serve_as_history():
    turns = Turn("q", "a"), Turn("q"), ConversationTurn("q", "a", model="m", rating="up")
    assert [turn_to_proto(turn) for turn in turns] == [
        ferret_pb2.Turn(question="q", answer="a"),
        ferret_pb2.Turn(question="q"),
        ferret_pb2.Turn(question="q", answer="a"),
    ]
