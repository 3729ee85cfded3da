"""One way to stream a reply from any LangChain chat model."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from rpla.core.models.base import Capabilities, Options, Piece, RplaChatModel, Usage, estimate_tokens


def capabilities_of(model: BaseChatModel) -> Capabilities:
    """What a model can do; of a model from elsewhere only streaming is taken for granted."""
    return model.capabilities if isinstance(model, RplaChatModel) else Capabilities(sampling=False)


def context_window_of(model: BaseChatModel) -> int:
    """Most tokens of prompt and reply together; of a model from elsewhere as its LangChain profile says, else 8,192."""
    if isinstance(model, RplaChatModel):
        return model.context_window
    profile: Any = getattr(model, "profile", None) or {}
    return int(profile.get("max_input_tokens") or 8192)


def count_tokens_with(model: BaseChatModel, text: str) -> int:
    """Tokens of a text: a LangChain model's own counter may fetch a tokenizer from the network, so it is not asked."""
    return model.count_tokens(text) if isinstance(model, RplaChatModel) else estimate_tokens(text)


def stream_pieces(
    model: BaseChatModel, messages: Sequence[BaseMessage], options: Options
) -> AsyncGenerator[Piece, None]:
    """Stream a reply. A model from elsewhere is given the stop strings; the rest is as its owner configured it."""
    if isinstance(model, RplaChatModel):
        return model.pieces(messages, options)
    return _pieces_of_any(model, messages, options)


async def _pieces_of_any(
    model: BaseChatModel, messages: Sequence[BaseMessage], options: Options
) -> AsyncGenerator[Piece, None]:
    finish, usage = "stop", None
    async for chunk in model.astream(list(messages), stop=list(options.stop) or None):
        finish = chunk.response_metadata.get("finish_reason") or finish
        if counted := getattr(chunk, "usage_metadata", None):
            usage = Usage(
                prompt_tokens=counted["input_tokens"],
                completion_tokens=counted["output_tokens"],
                cached_tokens=counted.get("input_token_details", {}).get("cache_read", 0),
            )
        if text := chunk.text:
            yield Piece(text=text)
    yield Piece(finish=finish, usage=usage)
