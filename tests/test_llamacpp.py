import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from rpla import Agent, TextDelta, TurnCommitted
from rpla.core.errors import RplaError
from rpla.core.models.base import Options, collect
from rpla.core.models.llamacpp import LlamaCppModel
from tests.stage import KEEPER

GREEDY = Options(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> LlamaCppModel:
    return LlamaCppModel(path=str(smollm2_gguf), context=2048)


def ask(text: str) -> list:
    return [SystemMessage("You answer in one sentence."), HumanMessage(text)]


async def test_it_streams_and_counts(model: LlamaCppModel) -> None:
    pieces = [piece async for piece in model.pieces(ask("What is the sea?"), GREEDY)]
    assert len([piece for piece in pieces if piece.text]) > 3
    assert pieces[-1].finish in ("stop", "length")
    assert pieces[-1].usage.prompt_tokens > 10
    assert 0 < pieces[-1].usage.completion_tokens <= 24


async def test_greedy_replies_repeat_and_seeds_repeat(model: LlamaCppModel) -> None:
    for options in (GREEDY, Options(temperature=1.5, seed=11, max_tokens=24)):
        texts = {(await collect(model.pieces(ask("Name a fish."), options))).text for _ in range(3)}
        assert len(texts) == 1
    other = await collect(model.pieces(ask("Name a fish."), Options(temperature=1.5, seed=12, max_tokens=24)))
    assert other.text not in texts


async def test_stop_strings_end_a_reply_and_are_not_in_it(model: LlamaCppModel) -> None:
    whole = await collect(model.pieces(ask("Count: one, two, three."), GREEDY))
    stop = whole.text[5:9]
    cut = await collect(
        model.pieces(ask("Count: one, two, three."), Options(temperature=0, max_tokens=24, stop=(stop,)))
    )
    assert cut.finish == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]


async def test_generated_logprobs_are_those_of_the_tokens(model: LlamaCppModel) -> None:
    options = Options(temperature=0, max_tokens=6, logprobs=3)
    reply = await collect(model.pieces(ask("Name a colour."), options))
    assert "".join(token.token for token in reply.logprobs) == reply.text
    for token in reply.logprobs:
        assert token.logprob <= 0
        assert token.logprob == pytest.approx(max(logprob for _, logprob in token.top), abs=1e-3)


async def test_a_schema_holds_the_output_to_it(model: LlamaCppModel) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["glad", "sad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    import json

    reply = await collect(model.pieces(ask("How do you feel?"), Options(max_tokens=40, seed=1, json_schema=schema)))
    assert json.loads(reply.text)["mood"] in ("glad", "sad")


async def test_closing_the_stream_stops_the_tokens(model: LlamaCppModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[Any] = []
    ask_model = LlamaCppModel._ask

    def counted(self: LlamaCppModel, messages: Any, request: Any, conversation: str, on_chunk: Any = None) -> Any:
        def count(chunk: Any) -> bool:
            chunks.append(chunk)
            return bool(on_chunk(chunk))

        return ask_model(self, messages, request, conversation, count if on_chunk else None)

    monkeypatch.setattr(LlamaCppModel, "_ask", counted)
    endless = Options(max_tokens=100_000, temperature=0, conversation="stopped")
    stream = model.pieces(ask("Count upwards from one, and never stop."), endless)
    async for _ in stream:
        break
    await stream.aclose()
    # A conversation has one slot: this reply can only begin when the one before has stopped, of itself or not.
    await collect(model.pieces(ask("Hi."), Options(max_tokens=1, conversation="stopped")))
    assert len(chunks) < 200


async def test_eight_chats_at_once_get_the_answers_they_get_alone(model: LlamaCppModel) -> None:
    def request(number: int):
        options = Options(temperature=0, max_tokens=12, conversation=f"chat {number}")
        return collect(model.pieces(ask(f"Repeat after me: berth {number}."), options))

    together = await asyncio.gather(*(request(number) for number in range(8)))
    alone = [await request(number) for number in range(8)]
    assert len({reply.text for reply in alone}) > 1
    assert [reply.text for reply in together] == [reply.text for reply in alone]


async def test_a_prefilled_turn_is_read_once(model: LlamaCppModel) -> None:
    past = [*ask("What is a lighthouse? " * 10), AIMessage("A tower with a lamp. " * 10)]
    await model.prefill(past, "prefilled")
    asked = [*past, HumanMessage("Who keeps it?")]
    reply = await collect(model.pieces(asked, Options(temperature=0, max_tokens=4, conversation="prefilled")))
    assert reply.usage.prompt_tokens - reply.usage.cached_tokens < 24


async def test_chats_with_one_character_keep_their_own_past(model: LlamaCppModel) -> None:
    card = SystemMessage("You keep the lighthouse at Skerry Point and talk to storms. " * 8)
    pasts = {name: [card, HumanMessage(f"I am {name}. " * 12)] for name in ("Ann", "Ben", "Cid")}
    for round_ in range(2):
        for name, past in pasts.items():
            options = Options(temperature=0, max_tokens=4, conversation=name)
            reply = await collect(model.pieces(past, options))
            past += [AIMessage(reply.text), HumanMessage("And then?")]
            if round_:
                assert reply.usage.cached_tokens > 0.8 * reply.usage.prompt_tokens


async def test_a_prompt_larger_than_the_window_is_refused_with_both_numbers(model: LlamaCppModel) -> None:
    with pytest.raises(RplaError, match=r"has \d+ tokens; .* has room for 2048"):
        await collect(model.pieces(ask("word " * 4000), GREEDY))


def test_it_is_a_langchain_model(model: LlamaCppModel) -> None:
    answer = model.invoke(ask("Name a fish."), temperature=0, max_tokens=5)
    assert answer.text
    assert answer.usage_metadata["output_tokens"] <= 5
    assert (
        "".join(chunk.text for chunk in model.stream(ask("Name a fish."), temperature=0, max_tokens=5)) == answer.text
    )
    with pytest.raises(RplaError, match="Unknown model option: temprature"):
        model.invoke("Hi", temprature=0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "no model file"), (b"not a model at all", "not a GGUF"), (b"GGUF\x03\0\0\0", "truncated, damaged")],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RplaError, match=complaint):
        LlamaCppModel(path=str(file)).invoke("Hi")


def test_a_truncated_model_is_named(tmp_path: Path, smollm2_gguf: Path) -> None:
    file = tmp_path / "model.gguf"
    with smollm2_gguf.open("rb") as whole:
        file.write_bytes(whole.read(20_000_000))
    with pytest.raises(RplaError, match="truncated, damaged"):
        LlamaCppModel(path=str(file)).invoke("Hi")


def test_an_agent_talks_through_it(model: LlamaCppModel, tmp_path: Path) -> None:
    with Agent(KEEPER, model=model, home=tmp_path) as agent:
        agent.new_chat()
        events = list(agent.stream("Who keeps the ledger?"))
        assert "".join(event.text for event in events if isinstance(event, TextDelta))
        committed = events[-1]
        assert isinstance(committed, TurnCommitted)
        assert committed.turn.text
        assert {"contract", "card", "history", "lore"} <= {section.name for section in committed.sections}
        counted = sum(section.tokens for section in committed.sections)
        # The chat template and the brackets around notes are nobody's section.
    assert committed.usage.prompt_tokens - 48 <= counted <= committed.usage.prompt_tokens
