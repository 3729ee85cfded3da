"""Models in GGUF, run in this process by llama.cpp (through xllamacpp)."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import xllamacpp
from langchain_core.messages import BaseMessage
from pydantic import PrivateAttr

from rpla.core.errors import RplaError
from rpla.core.models.base import Capabilities, Options, Piece, RplaChatModel, TokenLogprob, Usage, chat_dicts
from rpla.core.models.slots import Slots

_QUIET = 0
_MAGIC = b"GGUF"
_BATCH = 64
"""Tokens of a prompt that are read at a stretch: whoever speaks meanwhile waits for that long, and no longer."""
_CACHE_RAM_MIB = 1024
"""For the states of chats that lost their slot to another; llama.cpp's own default is 8 GiB."""


class LlamaCppModel(RplaChatModel):
    """One GGUF file that serves `slots` chats at once, each with a context window of its own.

    Each slot keeps the keys and values of its last prompt, so a prompt that only appends costs its new tokens alone.
    The server inside listens on a socket file that only this user can open, which is how its tokenizer is reached.
    """

    path: str
    context: int = 8192
    slots: int = 4
    threads: int = 0
    gpu_layers: int = -1
    label: str = ""
    """The name it was asked for by; the path where empty."""
    _server: Any = PrivateAttr(default=None)
    _client: httpx.Client | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = PrivateAttr()
    _counted: Any = PrivateAttr()
    _slots: Slots = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._threads = ThreadPoolExecutor(max_workers=2 * self.slots + 2, thread_name_prefix="llamacpp")
        self._slots = Slots(self.slots)
        self._counted = lru_cache(maxsize=8192)(self._tokenize)

    @property
    def capabilities(self) -> Capabilities:
        """All but `score`: llama.cpp's server reports log-probabilities of generated tokens only."""
        return Capabilities(json_schema=True, logprobs=True, batch=True, prefill=True)

    @property
    def name_string(self) -> str:
        """``llamacpp:NAME-or-path``."""
        return f"llamacpp:{self.label or self.path}"

    @property
    def context_window(self) -> int:
        """As set, for each slot."""
        return self.context

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the model's own tokenizer."""
        return int(self._counted(text)) if text else 0

    async def load(self) -> None:
        """Read the file and start the server."""
        await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self.server)

    async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        """Stream a reply; tokens that arrive together come as one piece."""
        loop = asyncio.get_running_loop()
        inbox: deque[dict[str, Any] | None] = deque()
        arrived = asyncio.Event()
        cancelled = threading.Event()

        def put(chunk: dict[str, Any] | None) -> None:
            inbox.append(chunk)
            with contextlib.suppress(RuntimeError):  # the loop may be closed while the model winds down
                loop.call_soon_threadsafe(arrived.set)

        def on_chunk(chunk: dict[str, Any]) -> bool:
            put(chunk)
            return cancelled.is_set()

        def generate() -> None:
            try:
                if cancelled.is_set():  # while it waited for a thread
                    return
                # Progress is reported after each batch of the prompt: that is where reading can be stopped.
                streaming = {"stream": True, "return_progress": True}
                answer = self._ask(messages, {**streaming, **_request(options)}, options.conversation, on_chunk)
                if answer is not None:
                    put(answer)
            finally:
                put(None)

        job = loop.run_in_executor(self._threads, generate)
        try:
            ended = False
            while not ended:
                await arrived.wait()
                arrived.clear()
                chunks = [inbox.popleft() for _ in range(len(inbox))]
                ended = None in chunks
                if piece := self._piece([chunk for chunk in chunks if chunk is not None]):
                    yield piece
            await job
        finally:
            cancelled.set()
            job.cancel()

    async def prefill(self, messages: Sequence[BaseMessage], conversation: str = "") -> None:
        """Read messages into the cache of the conversation's slot."""
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, self._ask, messages, {"max_tokens": 0}, conversation)
        self._refuse_errors(answer or {})

    def _ask(
        self,
        messages: Sequence[BaseMessage],
        request: dict[str, Any],
        conversation: str,
        on_chunk: Callable[[dict[str, Any]], bool] | None = None,
    ) -> dict[str, Any] | None:
        server = self.server
        with self._slots.slot_for(conversation) as slot:
            request = {"messages": chat_dicts(messages), "id_slot": slot, **request}
            answer: dict[str, Any] | None = server.handle_chat_completions(request, on_chunk)
        return answer

    @property
    def server(self) -> Any:
        """llama.cpp's own server, started."""
        with self._lock:
            if self._server is None:
                self._server = self._start()
            return self._server

    def _start(self) -> Any:
        file = Path(self.path)
        if not file.is_file():
            raise RplaError(f"There is no model file {file}.", "`rpla models list` shows the models at hand.")
        with file.open("rb") as opened:
            if opened.read(4) != _MAGIC:
                raise RplaError(f"{file} is not a GGUF model.", "Give a .gguf file, or use hf: for a model folder.")
        sockets = tempfile.mkdtemp(prefix="rpla-")
        socket = os.path.join(sockets, "llama.sock")
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx = self.context * self.slots
        params.n_parallel = self.slots
        params.kv_unified = False
        params.n_batch = params.n_ubatch = _BATCH
        params.cache_ram_mib = _CACHE_RAM_MIB
        params.n_gpu_layers = self.gpu_layers
        params.hostnames = [socket]
        params.verbosity = _QUIET
        params.endpoint_slots = False
        if self.threads:
            params.cpuparams.n_threads = self.threads
            params.cpuparams_batch.n_threads = self.threads
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            shutil.rmtree(sockets, ignore_errors=True)
            raise RplaError(
                f"{file} could not be loaded: it is truncated, damaged, or of a kind llama.cpp does not know.",
                "Pull it again with `rpla models pull`, or compare its sha256 with its source's.",
            ) from error
        self._client = httpx.Client(transport=httpx.HTTPTransport(uds=socket), base_url="http://llama", timeout=60)
        weakref.finalize(self, _release, self._client, sockets)
        return server

    def _tokenize(self, text: str) -> int:
        assert self.server
        assert self._client is not None
        answer = self._client.post("/tokenize", json={"content": text})
        return len(answer.json()["tokens"])

    def _piece(self, chunks: Sequence[dict[str, Any]]) -> Piece | None:
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        finish, usage = "", None
        for chunk in chunks:
            self._refuse_errors(chunk)
            for choice in chunk.get("choices", ()):
                texts.append(choice["delta"].get("content") or "")
                finish = choice.get("finish_reason") or finish
                logprobs += [_logprob(entry) for entry in (choice.get("logprobs") or {}).get("content") or ()]
            if timings := chunk.get("timings"):
                usage = Usage(
                    prompt_tokens=timings["cache_n"] + timings["prompt_n"],
                    cached_tokens=timings["cache_n"],
                    completion_tokens=timings["predicted_n"],
                )
        text = "".join(texts)
        if not (text or finish or usage or logprobs):
            return None
        return Piece(text=text, finish=finish, usage=usage, logprobs=tuple(logprobs))

    def _refuse_errors(self, answer: dict[str, Any]) -> None:
        if not (error := answer.get("error")):
            return
        if error.get("type") == "exceed_context_size_error":
            raise RplaError(
                f"The prompt has {error['n_prompt_tokens']} tokens; {self.name_string} has room for {error['n_ctx']}.",
                "Raise llamacpp.context, or use a shorter card.",
            )
        raise RplaError(f"{self.name_string} refused: {error.get('message', error)}")


def _release(client: httpx.Client, folder: str) -> None:
    client.close()
    shutil.rmtree(folder, ignore_errors=True)


def _request(options: Options) -> dict[str, Any]:
    request: dict[str, Any] = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repetition_penalty,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
    }
    request = {key: value for key, value in request.items() if value is not None}
    if options.stop:
        request["stop"] = list(options.stop)
    if options.logprobs is not None:
        request |= {"logprobs": True, "top_logprobs": options.logprobs}
    if options.json_schema is not None:
        request["response_format"] = {"type": "json_schema", "json_schema": {"schema": options.json_schema}}
    return request


def _logprob(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
    return TokenLogprob(entry["token"], entry["logprob"], top)
