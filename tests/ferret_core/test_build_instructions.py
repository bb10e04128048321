"""What a language model writes is used only if it holds; asked over HTTP of a server that speaks chat completions."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ferret_core.data.build.instructions import LanguageModelFoils, describe_scene, instruct, parse_dialogue, parse_foils
from ferret_core.data.build.language_model import LanguageModel, LanguageModelError
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Relation, Scene, SceneObject
from ferret_core.data.build.shards import Plan, build, run_here
from ferret_core.data.files import read_records
from ferret_core.geometry import Box, ImageSize
from ferret_core.prompt import Turn
from tests.downloads import make_coco

SCENE = Scene(
    id="1",
    image="1.jpg",
    size=ImageSize(640, 480),
    objects=(
        SceneObject(box=Box(10, 20, 110.4, 220), name="dog", attributes=("brown",)),
        SceneObject(box=Box(300, 20, 350, 70), name="ball"),
        SceneObject(box=Box(0, 0, 3, 3), name="fly"),  # too small to be pointed at
    ),
    relations=(Relation(0, "chasing", 1),),
    captions=("A dog [box0] chases a ball [box1].",),
)
GOOD = {"turns": [{"question": "Why does [region0] run?", "answer": "The dog [box0] chases a ball [box1]."}]}


class ChatServer(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions with what `reply(request)` returns: text, or an HTTP code."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.requests, self.keys = reply, [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        reply = self.server.reply(body) if self.path == "/v1/chat/completions" else 404
        code = reply if isinstance(reply, int) else 200
        message = {"role": "assistant", "content": reply}
        content = (
            {"error": {"message": "no"}} if code != 200 else {"object": "chat.completion", "choices": [{"message": message}]}
        )
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*replies):
        """A server that gives these replies in turn, the last one for ever; or what a function makes of the request."""
        rest = list(replies)
        reply = replies[0] if callable(replies[0]) else lambda _: rest.pop(0) if len(rest) > 1 else rest[0]
        servers.append(ChatServer(reply))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def model_of(server, tmp_path):
    return LanguageModel(url=server.url, model="tiny", cache=tmp_path / "cache", pause=0.01)


def test_a_dialogue_is_asked_for_once(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(json.dumps(GOOD))
    expected = (Turn("Why does [region0] run?", "The dog [box0] chases a ball [box1]."),)
    assert instruct(SCENE, model_of(server, tmp_path)) == expected
    assert server.keys == ["Bearer secret"]
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert "dog, brown [10, 20, 110, 220]" in request["messages"][1]["content"]
    assert instruct(SCENE, model_of(server, tmp_path)) == expected  # a rerun costs nothing
    assert len(server.requests) == 1
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "cache").iterdir())


def test_a_bad_answer_goes_back_with_the_reason(serve, tmp_path):
    server = serve(
        "Sure!", json.dumps({"turns": [{"question": "Where?", "answer": "There [box7]."}]}), f"```json\n{json.dumps(GOOD)}\n```"
    )
    assert len(instruct(SCENE, model_of(server, tmp_path))) == 1
    first, second, third = (request["messages"] for request in server.requests)
    assert len(first) == 2
    assert second[2] == {"role": "assistant", "content": "Sure!"}
    assert "not JSON" in second[3]["content"]
    assert "there is no object 7" in third[5]["content"]


def test_a_model_that_never_gets_it_right_is_given_up(serve, tmp_path):
    server = serve("{}")
    with pytest.raises(LanguageModelError, match=r'tiny: no usable answer in 4 tries: must be a JSON object \{"turns"'):
        instruct(SCENE, model_of(server, tmp_path))
    assert len(server.requests) == 4
    assert not (tmp_path / "cache").exists()  # nothing bad is remembered


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(serve, tmp_path):
    server = serve(429, 503, json.dumps(GOOD))
    assert len(instruct(SCENE, model_of(server, tmp_path))) == 1
    assert len(server.requests) == 3
    server = serve(401)
    with pytest.raises(LanguageModelError, match=r"chat/completions: tiny: HTTP 401: .*no"):
        instruct(SCENE, model_of(server, tmp_path / "other"))
    assert len(server.requests) == 1
    server.shutdown()
    server.server_close()
    with pytest.raises(LanguageModelError, match="refused"):
        instruct(SCENE, model_of(server, tmp_path / "gone"))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "needs 1 to 8 turns, got 0"),
        ([{"question": "Why [region0]?"}], "turn 0: must have exactly question and answer"),
        ([{"question": "Why [region0]?", "answer": 7}], "turn 0: answer must be text"),
        ([{"question": "Why [region0]?", "answer": " "}], "text is empty"),
        ([{"question": "Why [region2]?", "answer": "So."}], "there is no object 2"),  # too small
        ([{"question": "Why [box0]?", "answer": "So."}], r"\[boxN\] has no place in a question"),
        ([{"question": "Why?", "answer": "So [region0]."}], r"\[regionN\] has no place in a answer"),
        ([{"question": "Why?", "answer": "So."}], "points at nothing"),
        ([{"question": "Why?", "answer": "A dog [10, 20, 110, 221]."}], r"\[10, 20, 110, 221\] is none of the given boxes"),
        ([{"question": "Why?", "answer": "A dog [10, 20]."}], r"\[10, 20\] is none of the given boxes"),
        ([{"question": "Why [region0]<image>?", "answer": "So."}], "token of the prompt format"),
    ],
)
def test_dialogues_that_are_refused(turns, message):
    with pytest.raises(ValueError, match=message):
        parse_dialogue(json.dumps({"turns": turns}), SCENE, [0, 1])


def test_given_coordinates_become_the_box_they_are():
    text = json.dumps({"turns": [{"question": "And [300,20,350,70]?", "answer": "The dog [10, 20, 110, 220]."}]})
    assert parse_dialogue(text, SCENE, [0, 1]) == (Turn("And [region1]?", "The dog [box0]."),)


def test_the_scene_as_text():
    assert describe_scene(SCENE, [0, 1]).splitlines() == [
        "Picture: 640 x 480 pixels",
        "Objects:",
        "  0: dog, brown [10, 20, 110, 220]",
        "  1: ball [300, 20, 350, 70]",
        "Relations:",
        "  0 chasing 1",
        "Captions:",
        "  A dog chases a ball.",
    ]


def test_processes_that_ask_the_same_get_the_same(serve, tmp_path):
    """A server may answer differently each time: the answer that is kept first counts for both."""
    meet = threading.Barrier(2)
    names = iter(("wolf", "fox"))

    def reply(_):
        meet.wait(10)
        return json.dumps({"foils": [next(names)]})

    server, said = serve(reply), []

    def ask():
        said.append(LanguageModelFoils(model_of(server, tmp_path)).of_name("dog"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said[0] == said[1]
    assert len(server.requests) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_foils(serve, tmp_path):
    assert parse_foils('{"foils": ["fox", "Dog", "puppy dog"]}', "dog", is_name=True) == ["fox"]
    assert parse_foils('{"foils": ["a white dog."]}', "a black dog") == ["a white dog"]
    with pytest.raises(ValueError, match="every version could be true"):
        parse_foils('{"foils": ["duck"]}', "bird", is_name=True)
    server = serve('{"foils": ["wolf"]}')
    assert LanguageModelFoils(model_of(server, tmp_path)).of_name("dog") == ["wolf"]


def test_a_whole_build_with_a_language_model(serve, tmp_path):
    """Foils and dialogues in the records, from two processes; a second build of the same asks nothing."""

    def reply(request):
        if request["messages"][1]["content"].startswith("Picture"):
            turn = {"question": "What may [region0] do next?", "answer": "The dog [box0] may bark at the cat [box2]."}
            return json.dumps({"turns": [turn]})
        return '{"foils": ["robot"]}'

    server = serve(reply)
    make_coco(tmp_path / "in")
    plan = Plan(source="coco", tasks=("instruct", "verify"), llm=model_of(server, tmp_path))
    for output in ("one", "two"):
        build(Request(tmp_path / "in"), plan, tmp_path / output, shards=3, run=run_here(2 if output == "one" else 1))
        if output == "one":
            asked = len(server.requests)
            assert asked >= 5 + 2  # five scenes, dog and cat
    assert len(server.requests) == asked
    for path in (tmp_path / "one").glob("shard-*.jsonl"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    turns = [
        turn for path in sorted((tmp_path / "one").glob("shard-*")) for record in read_records(path) for turn in record.turns
    ]
    assert sum("may bark" in turn.answer for turn in turns) == 5
    assert any("robot" in turn.question for turn in turns)


def test_without_a_model_nothing_goes_over_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("went over the network"))
    build(Request(make_coco(tmp_path / "in")), Plan(source="coco"), tmp_path / "out", shards=1, run=run_here(1))


def test_a_server_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="--llm-url: must be the http"):
        LanguageModel(url="", model="tiny", cache=tmp_path)
