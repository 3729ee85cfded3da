import asyncio
import shutil
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from rpla.core.errors import RplaError
from rpla.core.models.base import Options, Piece, collect

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from rpla.core.models.hf import HfModel  # noqa: E402
from rpla.core.models.hf_row import TextStream  # noqa: E402

pytestmark = pytest.mark.local

PROMPTS: list[list[BaseMessage]] = [
    [HumanMessage(text)]
    for text in (
        "Hi!",
        "Tell me about the sea, in one sentence.",
        "What is 2+2?",
        f"Write a poem about {'very ' * 40}old trees.",
        "Who are you?",
        "Name three colours.",
        "Where is Paris?",
        "Say ☃ and 你好, please.",
    )
]
SEA = PROMPTS[1]


@pytest.fixture(scope="module")
def model(smollm2_hf: Path) -> HfModel:
    # float32, in which a batch and a single request differ too little to change a greedy choice
    return HfModel(folder=str(smollm2_hf), dtype="float32", device="cpu", batch=6)


@pytest.fixture(scope="module")
def reference(smollm2_hf: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32).eval()


@pytest.fixture
def other_base(tmp_path: Path, smollm2_hf: Path) -> Path:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=49152
    )
    return save_tiny(transformers.LlamaForCausalLM(config), tmp_path / "other", smollm2_hf)


def save_tiny(tiny: Any, folder: Path, tokenizer: Path) -> Path:
    tiny.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    return folder


def save_lora(base: Path, folder: Path, *, spread: float) -> str:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers under a name that it deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        wrapped = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
    for name, weights in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=spread, generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(folder)
    return str(folder)


async def reply(model: HfModel, prompt: Sequence[BaseMessage], **options: Any) -> Piece:
    return await collect(model.pieces(prompt, Options(**({"temperature": 0, "max_tokens": 12} | options))))


def prompt_ids(tokenizer_folder: Path, prompt: Sequence[BaseMessage]) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    turns = [{"role": "user", "content": message.text} for message in prompt]
    return tokenizer, tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt").input_ids


async def test_concurrent_requests_equal_the_same_one_at_a_time(model: HfModel) -> None:
    lengths = [3, 12, 9, 12, 5, 12, 12, 12]

    async def late(number: int) -> Piece:
        await asyncio.sleep(0.1 * number)
        return await reply(model, PROMPTS[number], max_tokens=lengths[number])

    alone = [await reply(model, prompt, max_tokens=most) for prompt, most in zip(PROMPTS, lengths, strict=True)]
    together = await asyncio.gather(
        *(reply(model, prompt, max_tokens=most) for prompt, most in zip(PROMPTS, lengths, strict=True))
    )
    joining = await asyncio.gather(*(late(number) for number in range(len(PROMPTS))))
    assert together == alone
    assert joining == alone
    assert len({piece.text for piece in alone}) == len(PROMPTS)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
async def test_a_greedy_reply_is_what_transformers_generates(
    model: HfModel, reference: Any, smollm2_hf: Path, penalty: float
) -> None:
    tokenizer, ids = prompt_ids(smollm2_hf, SEA)
    made = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        repetition_penalty=penalty,
    )
    piece = await reply(model, SEA, repetition_penalty=penalty)
    assert piece.text == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert piece.usage is not None
    assert piece.usage.prompt_tokens == ids.shape[1]


async def test_a_seed_gives_the_same_reply_alone_and_in_a_batch(model: HfModel) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95, "min_p": 0.02, "seed": 7}
    alone = await reply(model, SEA, **options)
    together = await asyncio.gather(
        reply(model, PROMPTS[3], **options | {"seed": 8}),
        reply(model, SEA, **options),
        reply(model, SEA, **options | {"seed": 8}),
        reply(model, PROMPTS[0]),
    )
    assert together[1] == alone
    assert together[2].text != alone.text
    assert together[3] == await reply(model, PROMPTS[0])


async def test_requests_without_a_seed_differ(model: HfModel) -> None:
    texts = await asyncio.gather(*(reply(model, SEA, temperature=1.5) for _ in range(3)))
    assert len({piece.text for piece in texts}) > 1


async def test_the_narrowest_nucleus_is_greedy(model: HfModel) -> None:
    greedy, *narrow = await asyncio.gather(
        reply(model, SEA),
        reply(model, SEA, temperature=2, min_p=1.0),
        reply(model, SEA, temperature=2, top_p=0.0),
    )
    assert narrow == [greedy, greedy]


async def test_a_stop_string_split_over_tokens_is_never_seen(model: HfModel) -> None:
    whole = await reply(model, SEA, logprobs=0)
    tokens = [entry.token for entry in whole.logprobs]
    stop = tokens[4][-2:] + tokens[5][:2]
    assert stop not in whole.text[: len("".join(tokens[:4]))]
    pieces = [
        piece
        async for piece in model.pieces(SEA, Options(temperature=0, max_tokens=12, stop=("never", stop), logprobs=0))
    ]
    assert "".join(piece.text for piece in pieces) == whole.text.partition(stop)[0]
    assert len(pieces) > 2
    assert pieces[-1].finish == "stop"
    assert [entry.token for piece in pieces for entry in piece.logprobs] == tokens[:5]


async def test_max_tokens_is_the_length(model: HfModel) -> None:
    piece = await reply(model, SEA, max_tokens=5)
    assert piece.finish == "length"
    assert piece.usage is not None
    assert piece.usage.completion_tokens == 5


async def test_a_reply_ends_with_its_turn(model: HfModel) -> None:
    piece = await reply(model, PROMPTS[0], max_tokens=40)
    assert piece.finish == "stop"
    assert "<|" not in piece.text


async def test_one_cancelled_request_leaves_the_others_alone(model: HfModel) -> None:
    alone = [await reply(model, prompt) for prompt in PROMPTS[:3]]

    async def leave_early() -> float:
        async with aclosing(model.pieces(PROMPTS[3], Options(temperature=0, max_tokens=2000))) as stream:
            async for _ in stream:
                break
        left = time.monotonic()
        while busy_rows(model, 2000):
            await asyncio.sleep(0.01)
        return time.monotonic() - left

    *others, took_s = await asyncio.gather(*(reply(model, prompt) for prompt in PROMPTS[:3]), leave_early())
    assert others == alone
    assert took_s < 3


async def test_when_all_are_cancelled_the_work_ends(model: HfModel) -> None:
    tasks = [asyncio.create_task(reply(model, prompt, max_tokens=2000)) for prompt in PROMPTS]
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(20):
        while any(thread.name == "rpla-hf" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)


def busy_rows(model: HfModel, max_tokens: int) -> int:
    assert model._batcher is not None
    batch = model._batcher._batch
    return sum(row.request.max_tokens == max_tokens for row in batch.rows) if batch else 0


async def test_a_score_is_the_log_likelihood(model: HfModel, reference: Any, smollm2_hf: Path) -> None:
    tokenizer, ids = prompt_ids(smollm2_hf, SEA)
    texts = ["The sea is vast.", " Yes", "Water, water, every where, nor any drop to drink; 你好!"]
    expected = []
    for text in texts:
        more = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = reference(torch.cat([ids, more], 1)).logits[0, ids.shape[1] - 1 : -1]
        expected.append((logits.log_softmax(-1).gather(1, more.T).sum().item(), more.shape[1]))
    alone = [await model.score(SEA, text) for text in texts]
    together = await asyncio.gather(*(model.score(SEA, text) for text in texts), reply(model, PROMPTS[3]))
    for one, other, (logprob, tokens) in zip(alone, together, expected, strict=False):
        assert one.tokens == other.tokens == tokens
        assert one.logprob == pytest.approx(logprob, abs=1e-3)
        assert other.logprob == pytest.approx(logprob, abs=1e-3)


async def test_long_prompts_read_in_chunks_score_the_same(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The sea is vast, and it is old.", "No."]
    whole = [await model.score(prompt, text) for prompt, text in zip(PROMPTS[2:4], texts, strict=True)]
    greedy = [await reply(model, prompt) for prompt in PROMPTS[2:4]]
    monkeypatch.setattr(model._batcher, "_chunk", 7)
    chunked = [await model.score(prompt, text) for prompt, text in zip(PROMPTS[2:4], texts, strict=True)]
    assert [score.logprob for score in chunked] == pytest.approx([score.logprob for score in whole], abs=1e-3)
    assert await asyncio.gather(*(reply(model, prompt) for prompt in PROMPTS[2:4])) == greedy


async def test_logprobs_are_those_of_the_text(model: HfModel) -> None:
    piece = await reply(model, SEA, logprobs=3)
    assert "".join(entry.token for entry in piece.logprobs) == piece.text
    for entry in piece.logprobs:
        assert len(entry.top) == 3
        assert (entry.token, entry.logprob) == entry.top[0]
        assert entry.logprob == max(logprob for _, logprob in entry.top)
    score = await model.score(SEA, piece.text)
    assert score.tokens == len(piece.logprobs)
    assert score.logprob == pytest.approx(sum(entry.logprob for entry in piece.logprobs), abs=1e-3)


async def test_nothing_is_scored_as_nothing(model: HfModel) -> None:
    score = await model.score(SEA, "")
    assert (score.logprob, score.tokens) == (0, 0)


async def test_what_does_not_fit_is_refused_with_both_numbers(model: HfModel) -> None:
    with pytest.raises(RplaError, match=r"prompt has 40 tokens and the reply up to 9000; .* room for 8192"):
        await reply(model, SEA, max_tokens=9000)
    with pytest.raises(RplaError, match=r"prompt has 100\d\d tokens"):
        await reply(model, [HumanMessage("no " * 10_000)], max_tokens=None)
    with pytest.raises(RplaError, match="the reply up to 90"):
        await model.score(SEA, "no " * 9000)


async def test_a_failed_batch_fails_its_requests_and_no_later_one(
    model: HfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await reply(model, SEA)
    assert model._batcher is not None
    forward, calls = model._batcher._forward, iter(range(100))

    def fails_once_in_the_middle(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("no memory left\nand much more")
        return forward(*arguments)

    monkeypatch.setattr(model._batcher, "_forward", fails_once_in_the_middle)
    results = await asyncio.gather(*(reply(model, prompt) for prompt in PROMPTS[:2]), return_exceptions=True)
    assert [str(error).splitlines()[0] for error in results if isinstance(error, RplaError)] == [
        f"hf:{model.folder} failed on 2 requests at once: OutOfMemoryError: no memory left"
    ] * 2
    assert await reply(model, SEA) == before


async def test_a_failed_score_says_so(model: HfModel, monkeypatch: pytest.MonkeyPatch) -> None:
    await model.load()

    def fails(*_: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(model._batcher, "_forward", fails)
        with pytest.raises(RplaError, match="failed on 1 request at once"):
            await model.score(SEA, "Hello")
    assert (await model.score(SEA, "Hello")).tokens == 1


async def test_a_json_schema_is_refused(model: HfModel) -> None:
    with pytest.raises(RplaError, match="cannot hold to a JSON schema"):
        await reply(model, SEA, json_schema={"type": "object"})


def test_the_tokenizer_and_the_window_need_no_weights(smollm2_hf: Path) -> None:
    model = HfModel(folder=str(smollm2_hf))
    assert model.context_window == 8192
    assert model.count_tokens("Hello world") == 2
    assert model._model is None


async def test_the_weights_are_read_once(smollm2_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HfModel(folder=str(smollm2_hf), dtype="float32", device="cpu")
    read, weights = [], HfModel._weights
    monkeypatch.setattr(HfModel, "_weights", lambda self: read.append(1) or weights(self))
    await asyncio.gather(model.load(), model.load(), reply(model, SEA, max_tokens=1))
    assert read == [1]


def test_synchronous_callers_are_served(model: HfModel) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    whole = model.invoke("Name three colours.", **options)
    assert whole.content
    assert whole.response_metadata["finish_reason"] == "length"
    assert whole.usage_metadata is not None
    assert "".join(chunk.text for chunk in model.stream("Name three colours.", **options)) == whole.content
    assert [answer.content for answer in model.batch(["Name three colours."] * 2, **options)] == [whole.content] * 2


def test_two_event_loops_share_a_model(model: HfModel) -> None:
    texts: list[str] = []

    def run() -> None:
        texts.append(asyncio.run(reply(model, SEA)).text)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 2
    assert len(set(texts)) == 1


async def test_a_fresh_adapter_equals_its_base_and_a_trained_one_does_not(
    model: HfModel, smollm2_hf: Path, tmp_path: Path
) -> None:
    fresh, trained = (
        HfModel(
            folder=str(smollm2_hf),
            adapter=save_lora(smollm2_hf, tmp_path / str(spread), spread=spread),
            dtype="float32",
            device="cpu",
        )
        for spread in (0.0, 0.5)
    )
    base = await reply(model, SEA, logprobs=0)
    score = await model.score(SEA, "The sea is vast.")
    assert (await reply(fresh, SEA)).text == base.text
    assert (await fresh.score(SEA, "The sea is vast.")).logprob == pytest.approx(score.logprob, abs=1e-4)
    assert (await reply(trained, SEA)).text != base.text
    assert abs((await trained.score(SEA, "The sea is vast.")).logprob - score.logprob) > 0.1


async def test_an_adapter_of_another_base_is_refused(smollm2_hf: Path, other_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(other_base, tmp_path / "adapter", spread=0.1)
    with pytest.raises(RplaError, match="does not fit") as caught:
        await HfModel(folder=str(smollm2_hf), adapter=adapter).load()
    assert "another base model" in caught.value.hint


async def test_an_adapter_with_more_layers_than_its_base_is_refused(other_base: Path, tmp_path: Path) -> None:
    adapter = save_lora(other_base, tmp_path / "adapter", spread=0.1)
    config = transformers.AutoConfig.from_pretrained(other_base)
    config.num_hidden_layers, config.layer_types = 1, None
    shorter = save_tiny(transformers.LlamaForCausalLM(config), tmp_path / "shorter", other_base)
    with pytest.raises(RplaError, match="4 tensors do not match"):
        await HfModel(folder=str(shorter), adapter=adapter).load()


async def test_folders_that_are_no_adapters_are_refused(other_base: Path, tmp_path: Path) -> None:
    with pytest.raises(RplaError, match=r"is not an adapter: it has no adapter_config\.json"):
        await HfModel(folder=str(other_base), adapter=str(tmp_path / "nowhere")).load()
    adapter = save_lora(other_base, tmp_path / "adapter", spread=0.1)
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(RplaError, match="does not fit"):
        await HfModel(folder=str(other_base), adapter=adapter).load()
    with pytest.raises(RplaError) as caught:
        await HfModel(folder=adapter).load()
    assert "It is an adapter" in caught.value.hint


async def test_folders_that_are_no_models_are_refused(other_base: Path, tmp_path: Path) -> None:
    with pytest.raises(RplaError, match="There is no model folder"):
        await HfModel(folder=str(tmp_path / "nowhere")).load()
    with pytest.raises(RplaError, match=r"it has no config\.json"):
        await HfModel(folder=str(tmp_path)).load()
    weights = other_base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    model = HfModel(folder=str(other_base))
    with pytest.raises(RplaError, match=r"The weights of .* could not be loaded") as caught:
        await model.load()
    assert "truncated" in caught.value.hint
    weights.write_bytes(whole)
    await model.load()
    weights.unlink()
    torch.save({}, other_base / "pytorch_model.bin")
    with pytest.raises(RplaError, match="could not be loaded"):
        await HfModel(folder=str(other_base)).load()
    (other_base / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(RplaError, match="is not a model that transformers knows"):
        await HfModel(folder=str(other_base)).load()


async def test_weights_that_lack_tensors_are_refused(other_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(other_base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, other_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RplaError, match=r"lack 1 tensors, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        await HfModel(folder=str(other_base)).load()


async def test_a_model_without_a_chat_template_is_refused(other_base: Path) -> None:
    (other_base / "chat_template.jinja").unlink()
    with pytest.raises(RplaError, match="has no chat template"):
        await reply(HfModel(folder=str(other_base)), SEA)


async def test_a_template_may_refuse(other_base: Path) -> None:
    (other_base / "chat_template.jinja").write_text("{{ raise_exception('No system role here') }}")
    with pytest.raises(RplaError, match="No system role here"):
        await reply(HfModel(folder=str(other_base)), [SystemMessage("Be kind.")])


async def test_an_unknown_device_is_refused(other_base: Path) -> None:
    with pytest.raises(RplaError, match="The device abacus cannot be used"):
        await HfModel(folder=str(other_base), device="abacus").load()


def tiny_windowed() -> Any:
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=49152,
            sliding_window=16,
        )
    )


def tiny_linear() -> Any:
    return transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            vocab_size=49152,
        )
    )


@pytest.fixture(params=[tiny_windowed, tiny_linear])
def unjoinable(request: pytest.FixtureRequest, tmp_path: Path, smollm2_hf: Path) -> HfModel:
    torch.manual_seed(0)
    folder = save_tiny(request.param(), tmp_path / "unjoinable", smollm2_hf)
    return HfModel(folder=str(folder), dtype="float32", device="cpu")


async def test_models_with_other_caches_are_served_in_batches_too(unjoinable: HfModel) -> None:
    lengths = [3, 12, 6, 12]
    alone = [
        await reply(unjoinable, prompt, max_tokens=most) for prompt, most in zip(PROMPTS[:4], lengths, strict=True)
    ]
    together = await asyncio.gather(
        *(reply(unjoinable, prompt, max_tokens=most) for prompt, most in zip(PROMPTS[:4], lengths, strict=True))
    )
    assert unjoinable._batcher is not None
    assert not unjoinable._batcher._joins
    assert together == alone
    texts = ["The sea is vast.", "No."]
    scores = [await unjoinable.score(SEA, text) for text in texts]
    assert [score.logprob for score in await asyncio.gather(*(unjoinable.score(SEA, text) for text in texts))] == (
        pytest.approx([score.logprob for score in scores], abs=1e-3)
    )


def from_bytes(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def test_text_comes_in_whole_characters() -> None:
    stream = TextStream(from_bytes, ())
    assert [stream.add(token) for token in "a☃b".encode()] == ["a", "", "", "☃", "b"]
    assert stream.add("☃".encode()[0]) == ""
    assert stream.end() == ""


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(from_bytes, ("\nUser:", "###"))
    assert [stream.add(token) for token in b"a\nUs."] == ["a", "", "", "", "\nUs."]
    assert [stream.add(token) for token in b"##.##"] == ["", "", "##.", "", ""]
    assert not stream.stopped
    assert stream.end() == "##"
    stream = TextStream(from_bytes, ("\nUser:", "###"))
    assert "".join(stream.add(token) for token in b"Hello.\nUser:") == "Hello."
    assert stream.stopped


def test_a_stop_string_in_the_last_token_is_cut() -> None:
    stream = TextStream(from_bytes, ("b",))
    assert stream.add(ord("a")) == "a"
    assert stream.add(ord("b"), last=True) == ""
    assert stream.stopped
