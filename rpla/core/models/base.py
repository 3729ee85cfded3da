"""What every chat model here offers beside LangChain's `BaseChatModel`, and how to ask whether one can."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from rpla.core.errors import RplaError
from rpla.core.loop import iterate_sync, run_sync


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do. Callers ask; nothing is assumed."""

    stream: bool = True
    sampling: bool = True
    """Takes top_p, min_p, repetition_penalty and seed."""
    json_schema: bool = False
    """Holds its output to a JSON schema while it generates."""
    logprobs: bool = False
    """Reports log-probabilities of the tokens it generates."""
    score: bool = False
    """Has `score`: the log-likelihood of given text."""
    adapters: bool = False
    batch: bool = False
    """Serves concurrent requests faster than one after another."""
    prefill: bool = False
    """Has `prefill`: reads text into its cache ahead of need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One request's options; None leaves a choice to the model."""

    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives to report beside each token; 0 reports the token alone."""
    json_schema: dict[str, Any] | None = None
    conversation: str = ""
    """Requests with the same one share a cached past, where the model keeps one."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its natural log-probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """How many of the prompt's tokens were already in the model's cache."""
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text as it arrives. The last piece of a reply has `finish`, and `usage` where the model counts."""

    text: str = ""
    finish: str = ""
    """``stop``, ``length``, or empty while the reply goes on."""
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of a continuation given a prompt: natural log, summed over its tokens."""

    logprob: float
    tokens: int


class RplaChatModel(BaseChatModel):
    """A chat model that implements `pieces`; LangChain's interface is derived from it, sync and async."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this model can do."""

    @property
    @abstractmethod
    def name_string(self) -> str:
        """The string that `open_model` makes this model from."""

    @property
    @abstractmethod
    def context_window(self) -> int:
        """Most tokens of prompt and reply together."""

    @abstractmethod
    def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        """Stream a reply. Closing the generator stops the tokens within 200 ms; a prompt is read to its end."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exactly where the model's tokenizer is at hand, else estimated."""
        return estimate_tokens(text)

    async def load(self) -> None:
        """Make ready, so that the first reply does not pay for it."""

    async def prefill(self, messages: Sequence[BaseMessage], conversation: str = "") -> None:
        """Read messages into the model's cache for a conversation. Raises RplaError where it has no prefill."""
        raise RplaError(f"{self.name_string} cannot prefill.", "Ask capabilities.prefill first.")

    async def score(self, prompt: Sequence[BaseMessage], continuation: str) -> Score:
        """Log-likelihood of `continuation` as the reply to `prompt`. Raises RplaError where it cannot."""
        raise RplaError(
            f"{self.name_string} cannot score given text.", "Use an hf: model, which has the log-likelihoods."
        )

    @property
    def _llm_type(self) -> str:
        return self.name_string.partition(":")[0]

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        async with aclosing(self.pieces(messages, _options(stop, kwargs))) as stream:
            async for piece in stream:
                chunk = ChatGenerationChunk(
                    message=AIMessageChunk(
                        content=piece.text, response_metadata=_metadata(piece), usage_metadata=_usage(piece.usage)
                    )
                )
                if run_manager:
                    await run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        whole = await collect(self.pieces(messages, _options(stop, kwargs)))
        message = AIMessage(content=whole.text, response_metadata=_metadata(whole), usage_metadata=_usage(whole.usage))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in iterate_sync(self._astream(messages, stop, None, **kwargs)):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_sync(self._agenerate(messages, stop, None, **kwargs))


async def collect(stream: AsyncGenerator[Piece, None]) -> Piece:
    """All pieces of one reply as one piece."""
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    last = Piece()
    async with aclosing(stream):
        async for piece in stream:
            texts.append(piece.text)
            logprobs += piece.logprobs
            if piece.finish or piece.usage:
                last = piece
    return Piece(text="".join(texts), finish=last.finish, usage=last.usage, logprobs=tuple(logprobs))


def role_of(message: BaseMessage) -> str:
    """``system``, ``user`` or ``assistant``, as chat templates name them."""
    return {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}.get(message.type, message.type)


def chat_dicts(messages: Sequence[BaseMessage]) -> list[dict[str, str]]:
    """Messages as ``{"role", "content"}``, the form that chat templates and OpenAI's protocol take."""
    return [{"role": role_of(message), "content": message.text} for message in messages]


def estimate_tokens(text: str) -> int:
    """A count without a tokenizer: four Latin characters a token, one CJK character a token."""
    wide = sum("\u2e80" <= character <= "\uffef" for character in text) if not text.isascii() else 0
    return wide + (len(text) - wide + 3) // 4


def _options(stop: list[str] | None, kwargs: dict[str, Any]) -> Options:
    if unknown := set(kwargs) - {field.name for field in fields(Options)}:
        raise RplaError(
            f"Unknown model option: {', '.join(sorted(unknown))}.",
            f"Known: stop, {', '.join(field.name for field in fields(Options) if field.name != 'stop')}.",
        )
    return Options(stop=tuple(stop or ()), **kwargs)


def _metadata(piece: Piece) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if piece.finish:
        metadata["finish_reason"] = piece.finish
    if piece.logprobs:
        metadata["logprobs"] = [{"token": t.token, "logprob": t.logprob, "top": dict(t.top)} for t in piece.logprobs]
    return metadata


def _usage(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )
