"""Models behind an endpoint that speaks OpenAI's protocol: vLLM, Ollama, llama-server, or a provider."""

import asyncio
import re
import socket
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
from langchain_core.messages import BaseMessage, convert_to_messages
from pydantic import Field, PrivateAttr, SecretStr

from rpla.core.errors import RplaError
from rpla.core.models.base import Capabilities, Options, Piece, RplaChatModel, TokenLogprob, Usage, chat_dicts
from rpla.core.nearest import nearest_hint

if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

_OPENAI_HOST = "api.openai.com"
_OPENAI_URL = f"https://{_OPENAI_HOST}/v1"
_NO_KEY = "none"
_BACKOFF_S = 0.5
"""The pause before the first retry; each further one is twice as long."""
_LONGEST_BACKOFF_S = 20.0
_RUBBISH = (ValueError, TypeError, KeyError, AttributeError, IndexError)
"""What reading a stream raises where its JSON is broken, or is not a reply's."""
_OPTIONAL = ("min_p", "repetition_penalty", "repeat_penalty", "temperature", "top_p", "max_tokens")
_UNKNOWN_OPTION = re.compile(r"unsupported|not support|unknown|unrecogni[sz]ed|not permitted|unexpected", re.I)
_MOST_SAID = 300


class OpenAIModel(RplaChatModel):
    """A model that someone else serves. Nothing is sent anywhere but to `base_url`."""

    model: str
    base_url: str = ""
    """Such as ``http://localhost:8000/v1``; OpenAI's own where empty."""
    api_key: SecretStr = Field(default=SecretStr(""), repr=False)
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that the key came from, for error messages."""
    context: int = 8192
    timeout_s: float = 60.0
    """Longest silence, before the first token and between tokens."""
    retries: int = 2
    """How often a request is made again that was refused for the moment or answered with rubbish."""
    _chat: Any = PrivateAttr(default=None)
    _refused: set[str] = PrivateAttr(default_factory=set)
    """Options that the endpoint turned out not to know."""

    @property
    def capabilities(self) -> Capabilities:
        """What the protocol has; given text cannot be scored, nor read into a cache."""
        return Capabilities(json_schema=True, logprobs=True, batch=True)

    @property
    def name_string(self) -> str:
        """``openai:NAME``."""
        return f"openai:{self.model}"

    @property
    def context_window(self) -> int:
        """As set: the protocol does not tell."""
        return self.context

    async def load(self) -> None:
        """Import the client; nothing is sent."""
        if self._chat is None:
            self._chat = await asyncio.to_thread(self._client)

    async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        """Stream a reply; closing the generator closes the connection. Raises RplaError that names the URL."""
        await self.load()
        import openai

        prompt = convert_to_messages(chat_dicts(messages))
        begun, tries = False, 0
        while True:
            wait_s, rubbish, left_out = _BACKOFF_S * 2**tries, "", frozenset(self._refused)
            try:
                async with aclosing(self._attempt(prompt, options)) as stream:
                    async for piece in stream:
                        begun = True
                        yield piece
                return
            except openai.APIError as error:
                if not begun and self._do_without(error, left_out):
                    continue
                if begun or tries >= self.retries or not _is_passing(error):
                    raise await self._explained(error, begun, tries) from None
                wait_s = max(wait_s, _retry_after_s(error))
            except _RUBBISH as error:
                rubbish = str(error) or type(error).__name__
            if rubbish and (begun or tries >= self.retries):
                what = "broke off within a reply" if begun else "did not answer with a reply"
                hint = "" if begun else "Is this the URL of an OpenAI-compatible API? It usually ends in /v1."
                raise self._error(f"{self._url} {what}: {rubbish}", hint)
            tries += 1
            await asyncio.sleep(min(wait_s, _LONGEST_BACKOFF_S))

    async def _attempt(self, prompt: list[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        from langchain_openai.chat_models.base import BaseChatOpenAI

        finish, usage = "", None
        # Not through `astream`: this model's caller already runs the callbacks, which would see every token twice.
        # Not through ChatOpenAI's own `_astream` either: closing that leaves the connection to the garbage collector.
        stop, request = list(options.stop) or None, self._request(options)
        chunks: Any = BaseChatOpenAI._astream(self._chat, prompt, stop=stop, stream_usage=True, **request)
        async with aclosing(chunks) as stream:
            async for chunk in stream:
                about = chunk.generation_info or {}
                if reason := about.get("finish_reason"):
                    finish = "length" if reason == "length" else "stop"
                usage = _usage(getattr(chunk.message, "usage_metadata", None)) or usage
                logprobs = tuple(_logprobs(about.get("logprobs")))
                if chunk.text or logprobs:
                    yield Piece(text=chunk.text, logprobs=logprobs)
        if not finish:
            raise ValueError("the stream ended without the reply's end")
        yield Piece(finish=finish, usage=usage)

    def _request(self, options: Options) -> dict[str, Any]:
        # What ChatOpenAI would rename (max_tokens), parse itself (response_format) or refuse goes by extra_body, which
        # it passes on untouched.
        extra: dict[str, Any] = {"max_tokens": options.max_tokens}
        if f"//{_OPENAI_HOST}/" not in f"{self._base}/":
            extra["min_p"] = options.min_p
            extra["repetition_penalty"] = extra["repeat_penalty"] = options.repetition_penalty
        request: dict[str, Any] = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": options.seed,
            "top_logprobs": options.logprobs,
            "logprobs": None if options.logprobs is None else True,
        }
        if options.json_schema is not None:
            # OpenAI's strict mode takes closed objects only; other servers hold to any schema without being asked.
            strict = options.json_schema.get("additionalProperties") is False
            schema = {"name": "reply", "schema": options.json_schema, "strict": strict}
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        if "max_tokens" in self._refused:
            extra["max_completion_tokens"] = extra["max_tokens"]
        request, extra = (
            {key: value for key, value in part.items() if value is not None and key not in self._refused}
            for part in (request, extra)
        )
        return {**request, "extra_body": extra}

    def _do_without(self, error: Any, left_out: frozenset[str]) -> bool:
        """Whether the endpoint refused for an option that it does not know, and that can be left out from now on."""
        if getattr(error, "status_code", 0) not in (400, 422) or not _UNKNOWN_OPTION.search(str(error)):
            return False
        said = str(error)
        named = {name for name in _OPTIONAL if error.param == name or re.search(rf"\b{name}\b", said)}
        self._refused |= named
        return bool(named - left_out)

    async def _explained(self, error: Any, begun: bool, tries: int) -> RplaError:
        """The error as what to do about it."""
        import openai

        status, said = _status(error), str(error.message)[:_MOST_SAID]
        times = f" {tries + 1} times" if tries else ""
        if isinstance(error, openai.APITimeoutError):
            return self._error(
                f"{self._url} was silent for {self.timeout_s:g} s{' within a reply' if begun else ''}.",
                "Is the server busy loading? Raise openai.timeout_s to wait longer.",
            )
        if isinstance(error, openai.APIConnectionError):
            causes = list(_causes(error))
            why = next(
                (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), causes[-1]
            )
            if any(isinstance(cause, socket.gaierror) for cause in causes):
                return self._error(f"{self._url}: there is no host of that name.", "Check openai.base_url.")
            if begun or not any(type(cause).__name__ == "ConnectError" for cause in causes):
                return self._error(f"{self._url} closed the connection{' within a reply' if begun else times}.")
            return self._error(
                f"{self._url} cannot be reached: {why}.", "Is the server running? Check openai.base_url."
            )
        if status in (401, 403):
            return self._error(
                f"{self._url} refused the API key (HTTP {status}).", f"Put the key into {self.api_key_env}."
            )
        if status == 404 or error.code == "model_not_found":
            return await self._not_found(said)
        if "context" in said and status == 400:
            return self._error(f"{self._url} refused the prompt: {said}", "Set openai.context to the server's own.")
        if status == 429:
            return self._error(f"{self._url} has had too many requests{times} (HTTP 429): {said}", "Wait a little.")
        failed = "refused the request" if 400 <= status < 500 else f"failed{times}"
        return self._error(f"{self._url} {failed} ({f'HTTP {status}' if status else 'within the stream'}): {said}")

    async def _not_found(self, said: str) -> RplaError:
        try:
            names = await endpoint_models(self._base, self.api_key.get_secret_value())
        except RplaError:
            return self._error(f"{self._url} is not an OpenAI-compatible API: {said}", "The URL usually ends in /v1.")
        return self._error(f"{self._url} has no model {self.model!r}.", nearest_hint(self.model, names))

    def _error(self, message: str, hint: str = "") -> RplaError:
        key = self.api_key.get_secret_value()
        return RplaError(message.replace(key, "***") if key else message, hint)

    def _client(self) -> "ChatOpenAI":
        if not re.match(r"https?://", self._base):
            raise self._error(f"{self._url} is not a web address.", "openai.base_url begins with http:// or https://.")
        from langchain_openai import ChatOpenAI

        # It complains on stderr of servers that know more reasons to end a reply than OpenAI does.
        warnings.filterwarnings("ignore", r"Pydantic serializer warnings:\s+\S*\(Expected `(Choice|literal)")
        return ChatOpenAI(
            model=self.model,
            base_url=self._base,
            api_key=SecretStr(self.api_key.get_secret_value() or _NO_KEY),
            timeout=self.timeout_s,
            max_retries=0,
            stream_chunk_timeout=None,
            use_responses_api=False,
            # A kept connection belongs to one event loop; this model is called from several.
            default_headers={"Connection": "close"},
        )

    @property
    def _base(self) -> str:
        return self.base_url or _OPENAI_URL

    @property
    def _url(self) -> str:
        return _shown(self._base)


async def endpoint_models(base_url: str, api_key: str, timeout_s: float = 2.0) -> list[str]:
    """The names of the models that an endpoint serves. Raises RplaError where it does not tell in time."""
    try:
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(timeout=timeout_s, follow_redirects=True) as client:
            answer = await client.get(
                f"{base_url.rstrip('/')}/models", headers={"Authorization": f"Bearer {api_key or _NO_KEY}"}
            )
        answer.raise_for_status()
        return [str(model["id"]) for model in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, *_RUBBISH) as error:
        status = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
        raise RplaError(
            f"{_shown(base_url)} does not tell its models: {status or str(error) or type(error).__name__}",
            "Is the server running? The URL usually ends in /v1.",
        ) from error


def _status(error: Any) -> int:
    """The HTTP status of an error, also of one that came within a stream; 0 where it has none."""
    code = getattr(error, "status_code", None) or error.code
    return int(code) if str(code).isdigit() else 0


def _is_passing(error: Any) -> bool:
    """Whether the same request may succeed a moment later."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return False
    if isinstance(error, openai.APIConnectionError):
        return all(type(cause).__name__ != "ConnectError" for cause in _causes(error))
    status = _status(error)
    return status == 429 or not 400 <= status < 500


def _retry_after_s(error: Any) -> float:
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after", "") if response is not None else ""
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):  # one for each address of a host
            yield from error.exceptions
        error = error.__cause__ or error.__context__


def _usage(said: Any) -> Usage | None:
    if said is None:
        return None
    cached = said.get("input_token_details", {}).get("cache_read", 0)
    return Usage(prompt_tokens=said["input_tokens"], cached_tokens=cached, completion_tokens=said["output_tokens"])


def _logprobs(said: Any) -> Iterator[TokenLogprob]:
    for entry in (said or {}).get("content") or ():
        top = tuple((other["token"], float(other["logprob"])) for other in entry.get("top_logprobs") or ())
        yield TokenLogprob(entry["token"], float(entry["logprob"]), top)


def _shown(url: str) -> str:
    """A URL without the user and password that may be in it."""
    return re.sub(r"//[^/@]*@", "//", url)
