"""How much memories matter, said by a language model: asked for by ``memory.importance_by = "model"``."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from rpla.core.models.base import Options, collect
from rpla.core.models.stream import capabilities_of, stream_pieces
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.memories import Memory

_QUESTION = (
    "Here are {count} things that somebody was told:\n\n{told}\n\n"
    "How much will each of them still matter in a year? 1 is a trifle, 10 changes a life. "
    'Answer with {count} numbers, in this order, as JSON: {{"ratings": [...]}}'
)
_ATTEMPTS = 2
_RATED_AT_ONCE = 10
_TOKENS_EACH = 4


async def rate(memory: EpisodicMemory, model: BaseChatModel, memories: Sequence[Memory], options: Options) -> int:
    """Have a model rate memories from 1 to 10, kept as 0.1 to 1; how many were rated.

    Where its answer cannot be read, however often it is asked, the importance by rules stays.
    """
    rated = 0
    for start in range(0, len(memories), _RATED_AT_ONCE):
        asked = memories[start : start + _RATED_AT_ONCE]
        for one, rating in zip(asked, await _ratings(model, asked, options), strict=False):
            memory.change(one.id, importance=rating / 10)
            rated += 1
    return rated


async def _ratings(model: BaseChatModel, asked: Sequence[Memory], options: Options) -> list[int]:
    told = "\n".join(f"{number}. {' '.join(one.text.split())}" for number, one in enumerate(asked, 1))
    question = HumanMessage(_QUESTION.format(count=len(asked), told=told))
    options = replace(options, temperature=0.0, max_tokens=32 + _TOKENS_EACH * len(asked))
    if capabilities_of(model).json_schema:
        options = replace(options, json_schema=_schema(len(asked)))
    for _ in range(_ATTEMPTS):
        answer = await collect(stream_pieces(model, [question], options))
        ratings = _read(answer.text)
        if len(ratings) == len(asked):
            return ratings
    return []


def _schema(count: int) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 1, "maximum": 10}
    ratings = {"type": "array", "items": number, "minItems": count, "maxItems": count}
    return {"type": "object", "properties": {"ratings": ratings}, "required": ["ratings"]}


def _read(answer: str) -> list[int]:
    """The ratings in an answer; none where it is not what was asked for."""
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        ratings = json.loads(found[0])["ratings"] if found else []
    except (ValueError, KeyError, TypeError):
        return []
    if not isinstance(ratings, list) or not all(isinstance(rating, int) and 1 <= rating <= 10 for rating in ratings):
        return []
    return ratings
