import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import xllamacpp
from langchain_core.messages import HumanMessage

import rpla.core.models.openai
from rpla.core.errors import RplaError
from rpla.core.models.base import Options, Piece, collect
from rpla.core.models.openai import OpenAIModel, endpoint_models

ASK = [HumanMessage("Say hello.")]
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[str]:
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_gguf)
    params.n_ctx, params.n_parallel, params.kv_unified = 4096, 2, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # two would wait on each other on a busy machine
    params.hostnames, params.port, params.verbosity = ["127.0.0.1"], 0, 0
    params.endpoint_slots = True
    running = xllamacpp.Server(params)
    yield running.listening_address
    del running


@pytest.fixture
def real(server: str) -> OpenAIModel:
    return OpenAIModel(model="smollm2", base_url=f"{server}/v1")


class Fake(ThreadingHTTPServer):
    """Answers each request with the next of its scripts, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: list[Callable[[Handler], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.models = ["llama-3-8b", "qwen-7b"]
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        script = self.server.scripts.pop(0) if len(self.server.scripts) > 1 else self.server.scripts[0]
        try:
            script(self)
        except OSError:
            self.server.hung_up.set()

    def answer(self, status: int, body: str, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr(rpla.core.models.openai, "_BACKOFF_S", 0.01)
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def model_of(fake: Fake, **fields: Any) -> OpenAIModel:
    return OpenAIModel(model="llama-3-8b", base_url=fake.url, **{"api_key": KEY, "timeout_s": 5.0, **fields})


def delta(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def stream(*events: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(200, "".join(events), "text/event-stream")


def failing(status: int, message: str = "no", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, json.dumps({"error": {"message": message}}), **headers)


FINE = stream(delta("Hel"), delta("lo"), delta("", "stop"), "data: [DONE]\n\n")


async def ask(model: OpenAIModel, **options: Any) -> Piece:
    return await collect(model.pieces(ASK, Options(**options)))


async def refusal(model: OpenAIModel, **options: Any) -> RplaError:
    with pytest.raises(RplaError) as caught:
        await ask(model, **options)
    assert KEY not in str(caught.value)
    return caught.value


async def broken_off(model: OpenAIModel) -> tuple[list[str], RplaError]:
    texts: list[str] = []
    try:
        async for piece in model.pieces(ASK, Options()):
            texts.append(piece.text)
    except RplaError as error:
        return texts, error
    raise AssertionError("the reply did not break off")


async def test_stream_of_a_real_server(real: OpenAIModel) -> None:
    pieces = [piece async for piece in real.pieces(ASK, Options(temperature=0, seed=1, max_tokens=12))]
    assert len(pieces) > 5
    assert all(piece.text and not piece.finish for piece in pieces[:-1])
    assert pieces[-1].finish in ("stop", "length")
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens >= len(pieces) - 2


async def test_max_tokens_and_cached_tokens(real: OpenAIModel) -> None:
    asked = [HumanMessage("Tell a long story about a lighthouse keeper and his three cats.")]
    first, second = [await collect(real.pieces(asked, Options(temperature=0, max_tokens=4))) for _ in range(2)]
    assert first.finish == "length"
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.completion_tokens == 4
    assert second.usage.cached_tokens > 10


async def test_stop_strings(real: OpenAIModel) -> None:
    asked = [HumanMessage("Count: one, two, three, four, five.")]
    free = await collect(real.pieces(asked, Options(temperature=0, seed=1, max_tokens=30)))
    stop = free.text.split()[2]
    held = await collect(real.pieces(asked, Options(temperature=0, seed=1, max_tokens=30, stop=(stop,))))
    assert held.text == free.text.partition(stop)[0]
    assert held.finish == "stop"


async def test_json_schema_is_held_to(real: OpenAIModel) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["glad", "sad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    reply = await ask(real, json_schema=schema, max_tokens=40)
    assert json.loads(reply.text)["mood"] in ("glad", "sad")


async def test_logprobs(real: OpenAIModel) -> None:
    reply = await ask(real, logprobs=2, temperature=0, max_tokens=5)
    assert "".join(token.token for token in reply.logprobs) == reply.text
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in reply.logprobs)


def test_langchain_sync_interface(real: OpenAIModel) -> None:
    message = real.bind(max_tokens=3).invoke("Hi")
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 3


async def test_closing_the_stream_stops_the_server(real: OpenAIModel, server: str) -> None:
    options = Options(max_tokens=2000, temperature=1.5, min_p=0.0)
    async with aclosing(real.pieces([HumanMessage("Write a very long novel.")], options)) as pieces:
        assert (await anext(pieces)).text
        assert any(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json())
    deadline = time.monotonic() + 2
    while any(slot["is_processing"] for slot in httpx.get(f"{server}/slots").json()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_prompt_beyond_the_context(real: OpenAIModel) -> None:
    with pytest.raises(RplaError, match="refused the prompt") as caught:
        await collect(real.pieces([HumanMessage("word " * 9000)], Options()))
    assert "openai.context" in caught.value.hint


async def test_wrong_path_of_a_real_server(server: str) -> None:
    error = await refusal(OpenAIModel(model="smollm2", base_url=f"{server}/nowhere"))
    assert f"{server}/nowhere" in error.message
    assert "/v1" in error.hint


async def test_models_of_a_real_server(server: str) -> None:
    assert len(await endpoint_models(f"{server}/v1", "")) == 1


async def test_request_as_it_arrives(fake: Fake) -> None:
    fake.scripts = [FINE]
    options = {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "max_tokens": 7, "seed": 3}
    reply = await ask(model_of(fake), **options, stop=("a", "b"), logprobs=0, json_schema={"type": "object"})
    assert (reply.text, reply.finish) == ("Hello", "stop")
    (request,) = fake.requests
    response_format = {"name": "reply", "schema": {"type": "object"}, "strict": False}
    assert request == {
        "model": "llama-3-8b",
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
        "repeat_penalty": 1.1,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 0,
        "response_format": {"type": "json_schema", "json_schema": response_format},
    }
    assert fake.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(("said", "finish"), [("length", "length"), ("eos", "stop"), ("content_filter", "stop")])
async def test_reasons_to_end(said: str, finish: str, fake: Fake) -> None:
    fake.scripts = [stream(delta("Hi"), delta("", said))]
    assert (await ask(model_of(fake))).finish == finish


async def test_request_without_key_and_options(fake: Fake) -> None:
    fake.scripts = [FINE]
    await ask(model_of(fake, api_key=""))
    assert set(fake.requests[0]) == {"model", "messages", "stream", "stream_options"}
    assert fake.keys == ["Bearer none"]


def test_openai_gets_no_options_that_it_does_not_know() -> None:
    request = OpenAIModel(model="x")._request(Options(min_p=0.1, repetition_penalty=1.1, max_tokens=5))
    assert request == {"extra_body": {"max_tokens": 5}}


async def test_options_that_an_endpoint_does_not_know_are_left_out_from_then_on(fake: Fake) -> None:
    fake.scripts = [
        failing(400, "property 'min_p' is unsupported"),
        failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        FINE,
    ]
    model = model_of(fake, retries=0)
    for _ in range(2):
        assert (await ask(model, min_p=0.1, max_tokens=5, top_p=0.9)).text == "Hello"
    assert [set(request) & {"min_p", "max_tokens", "max_completion_tokens", "top_p"} for request in fake.requests] == [
        {"min_p", "max_tokens", "top_p"},
        {"max_tokens", "top_p"},
        {"max_completion_tokens", "top_p"},
        {"max_completion_tokens", "top_p"},
    ]


def test_the_key_is_never_shown() -> None:
    model = OpenAIModel(model="x", api_key=KEY)
    assert KEY not in repr(model) + str(model) + str(model.model_dump()) + repr(model.bind(stop=["a"]))


async def test_the_models_of_two_event_loops_do_not_meet(fake: Fake) -> None:
    fake.scripts = [FINE]
    model = model_of(fake)
    assert (await ask(model)).text == "Hello"
    assert await asyncio.to_thread(lambda: asyncio.run(ask(model)).text) == "Hello"
    assert (await asyncio.to_thread(model.invoke, "Hi")).text == "Hello"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refused_connection(host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error = await refusal(OpenAIModel(model="x", base_url=f"http://{host}:{port}/v1", api_key=KEY))
    assert f"http://{host}:{port}/v1 cannot be reached" in error.message
    assert "running" in error.hint


async def test_unknown_host() -> None:
    error = await refusal(OpenAIModel(model="x", base_url="http://no-such-host.invalid/v1", api_key=KEY))
    assert "http://no-such-host.invalid/v1: there is no host of that name" in error.message


async def test_not_a_web_address() -> None:
    assert "not a web address" in (await refusal(OpenAIModel(model="x", base_url="localhost:8000"))).message


async def test_silence_before_the_first_token(fake: Fake) -> None:
    done = threading.Event()
    fake.scripts = [lambda _: done.wait(10) and None]
    started = time.monotonic()
    error = await refusal(model_of(fake, timeout_s=0.3))
    done.set()
    assert f"{fake.url} was silent for 0.3 s" in error.message
    assert time.monotonic() - started < 5
    assert len(fake.requests) == 1


async def test_silence_between_tokens(fake: Fake) -> None:
    done = threading.Event()

    def stall(handler: Handler) -> None:
        stream(delta("Hel"))(handler)
        handler.wfile.flush()
        done.wait(10)

    fake.scripts = [stall]
    texts, error = await broken_off(model_of(fake, timeout_s=0.3))
    done.set()
    assert texts == ["Hel"]
    assert "silent for 0.3 s within a reply" in error.message
    assert len(fake.requests) == 1


async def test_closing_hangs_up(fake: Fake) -> None:
    def endless(handler: Handler) -> None:
        handler.answer(200, "", "text/event-stream")
        while True:
            handler.wfile.write(delta("and ").encode())
            time.sleep(0.005)

    fake.scripts = [endless]
    async with aclosing(model_of(fake).pieces(ASK, Options())) as pieces:
        assert (await anext(pieces)).text == "and "
    assert await asyncio.to_thread(fake.hung_up.wait, 2)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_key(status: int, fake: Fake) -> None:
    fake.scripts = [failing(status, f"bad key {KEY}")]
    error = await refusal(model_of(fake, api_key_env="MY_KEY"))
    assert fake.url in error.message
    assert "MY_KEY" in error.hint
    assert len(fake.requests) == 1


async def test_unknown_model_offers_the_nearest(fake: Fake) -> None:
    fake.scripts = [failing(404)]
    error = await refusal(OpenAIModel(model="lama-3-8b", base_url=fake.url))
    assert error.message == f"{fake.url} has no model 'lama-3-8b'."
    assert error.hint == "Did you mean llama-3-8b?"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_passing_failures_are_tried_again(status: int, fake: Fake) -> None:
    fake.scripts = [failing(status), failing(status), FINE]
    assert (await ask(model_of(fake, retries=2))).text == "Hello"
    assert len(fake.requests) == 3


@pytest.mark.parametrize(("status", "retries"), [(429, 0), (429, 2), (500, 1)])
async def test_retries_are_bounded(status: int, retries: int, fake: Fake) -> None:
    fake.scripts = [failing(status, f"overloaded {KEY}")]
    error = await refusal(model_of(fake, retries=retries))
    assert f"HTTP {status}" in error.message
    assert fake.url in error.message
    assert len(fake.requests) == retries + 1


async def test_retry_waits_as_long_as_it_is_told_to(fake: Fake) -> None:
    fake.scripts = [failing(429, Retry_After="0.4"), FINE]
    started = time.monotonic()
    await ask(model_of(fake))
    assert time.monotonic() - started >= 0.4


async def test_bad_request_is_not_tried_again(fake: Fake) -> None:
    fake.scripts = [failing(400, "temperature must be below 2")]
    assert "refused the request (HTTP 400): " in (await refusal(model_of(fake), temperature=3.0)).message
    assert len(fake.requests) == 1


RUBBISH = {
    "html": lambda handler: handler.answer(200, "<html>Welcome</html>", "text/html"),
    "empty": stream(),
    "only done": stream("data: [DONE]\n\n"),
    "broken json": stream('data: {"choices": [\n\n'),
    "not a chunk": stream("data: 17\n\n"),
    "wrong shape": stream('data: {"choices": [17]}\n\n'),
    "no choices": stream('data: {"choices": null}\n\n'),
    "not text": lambda handler: (handler.answer(200, "", "text/event-stream"), handler.wfile.write(b"\xff\xfe\n\n")),
    "whole reply": lambda handler: handler.answer(200, '{"choices": [{"message": {"content": "Hi"}}]}'),
    "hangs up": lambda handler: handler.connection.shutdown(socket.SHUT_RDWR),
}


@pytest.mark.parametrize("kind", RUBBISH)
async def test_rubbish_is_tried_again_and_then_refused(kind: str, fake: Fake) -> None:
    fake.scripts = [RUBBISH[kind]]
    error = await refusal(model_of(fake, retries=1))
    assert fake.url in error.message
    assert len(fake.requests) == 2
    fake.scripts = [RUBBISH[kind], FINE]
    assert (await ask(model_of(fake, retries=1))).text == "Hello"


@pytest.mark.parametrize(
    "end",
    ['data: {"choices": [\n\n', "", 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'],
    ids=["broken", "cut", "error"],
)
async def test_failure_within_a_reply_is_not_tried_again(end: str, fake: Fake) -> None:
    fake.scripts = [stream(delta("Hel"), end)]
    texts, error = await broken_off(model_of(fake))
    assert texts == ["Hel"]
    assert fake.url in error.message
    assert len(fake.requests) == 1


async def test_models_of_an_endpoint(fake: Fake) -> None:
    assert await endpoint_models(fake.url, KEY) == ["llama-3-8b", "qwen-7b"]
    with pytest.raises(RplaError, match=r"http://127\.0\.0\.1:1/v1 does not tell"):
        await endpoint_models("http://127.0.0.1:1/v1", KEY)
