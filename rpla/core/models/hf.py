"""Models in Hugging Face format, run in this process by transformers; LoRA adapters go on top."""

import asyncio
import contextlib
import logging
import re
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import Field, PrivateAttr

from rpla.core.errors import MissingExtra, RplaError
from rpla.core.models.base import Capabilities, Options, Piece, RplaChatModel, Score, chat_dicts

try:
    import torch
    import transformers
    from jinja2 import TemplateError

    from rpla.core.models.hf_batch import Batcher, Scoring
    from rpla.core.models.hf_row import Request, Sampling
except ModuleNotFoundError as error:
    if error.name in ("torch", "transformers", "jinja2"):
        raise MissingExtra("Models in Hugging Face format", "local") from error
    raise

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_MARK = "rpla"
_SEEDS = 2**63

_log = logging.getLogger(__name__)


class HfModel(RplaChatModel):
    """One model folder (or hub id), with an adapter or without; concurrent requests are served as a batch.

    No code of the model's own is ever run, and weights are read from safetensors only. An adapter is not merged into
    the weights, so that what was trained is what runs.
    """

    folder: str
    adapter: str = ""
    """A PEFT folder."""
    dtype: str = "auto"
    """``auto`` takes bfloat16 where the hardware computes in it, else float32: emulated, it is many times slower."""
    device: str = "auto"
    batch_size: int = Field(default=32, alias="batch")
    """Most requests served at once; given as ``batch``, which as a field would hide LangChain's method."""
    _thread: ThreadPoolExecutor = PrivateAttr()
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _config: Any = PrivateAttr(default=None)
    _tokenizer: Any = PrivateAttr(default=None)
    _model: Any = PrivateAttr(default=None)
    _batcher: Batcher | None = PrivateAttr(default=None)
    _counted: Any = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        # One thread: whoever comes first loads the weights, and the others wait in line for it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf")
        self._counted = lru_cache(maxsize=8192)(lambda text: len(self._tokens(text)))

    @property
    def capabilities(self) -> Capabilities:
        """All but `json_schema` and `prefill`."""
        return Capabilities(logprobs=True, score=True, adapters=True, batch=True)

    @property
    def name_string(self) -> str:
        """``hf:FOLDER``."""
        return f"hf:{self.folder}"

    @property
    def context_window(self) -> int:
        """As the model's config has it."""
        config = self._read()[0]
        window = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(window or min(self._read()[1].model_max_length, 1 << 20))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the model's own tokenizer; the weights are not needed for it."""
        return int(self._counted(text)) if text else 0

    async def load(self) -> None:
        """Read the weights. Raises RplaError where a folder is not what it should be."""
        await self._in_thread(self._started)

    async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        """Stream a reply. Raises RplaError where prompt and reply do not fit, or the model fails."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Piece | RplaError] = asyncio.Queue()

        def deliver(item: Piece | RplaError) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, item)

        batcher = await self._in_thread(self._started)
        request = await self._in_thread(self._request, messages, options, deliver)
        batcher.submit(request)
        try:
            while True:
                item = await inbox.get()
                if isinstance(item, RplaError):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            request.cancelled.set()

    async def score(self, prompt: Sequence[BaseMessage], continuation: str) -> Score:
        """Log-likelihood of `continuation` as the beginning of a reply: the end of the turn is not counted.

        The prompt's tokens are those that a reply would follow. The continuation's are what the two texts tokenized
        together have beyond them, or the continuation's own where a token would span the border. Raises RplaError
        where both do not fit into the context window.
        """
        batcher = await self._in_thread(self._started)
        ids, start = await self._in_thread(self._continued, prompt, continuation)
        if len(ids) == start:
            return Score(0.0, 0)
        self._require_room(start, len(ids) - start)
        scoring = Scoring(ids=ids, start=start)
        batcher.submit(scoring)
        return await asyncio.wrap_future(scoring.result)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _request(self, messages: Sequence[BaseMessage], options: Options, deliver: Any) -> Request:
        if options.json_schema is not None:
            raise RplaError(f"{self.name_string} cannot hold to a JSON schema.", "Ask capabilities.json_schema first.")
        ids = self._tokens(self._prompt(messages))
        room = self.context_window - len(ids)
        wanted = max(room, 1) if options.max_tokens is None else max(options.max_tokens, 1)
        self._require_room(len(ids), wanted)
        own = self._model.generation_config
        temperature = (own.temperature or 1.0) if own.do_sample else 0.0
        return Request(
            ids=ids,
            max_tokens=wanted,
            stop=options.stop,
            logprobs=options.logprobs,
            deliver=deliver,
            sampling=Sampling(
                temperature=_first(options.temperature, temperature),
                top_p=_first(options.top_p, own.top_p, 1.0),
                min_p=_first(options.min_p, own.min_p, 0.0),
                repetition_penalty=_first(options.repetition_penalty, own.repetition_penalty, 1.0),
                seed=None if options.seed is None else options.seed % _SEEDS,
            ),
        )

    def _continued(self, prompt: Sequence[BaseMessage], continuation: str) -> tuple[list[int], int]:
        """Ids of prompt and continuation, and where the continuation begins."""
        text = self._prompt(prompt)
        before, together = self._tokens(text), self._tokens(text + continuation)
        if together[: len(before)] != before:
            together = before + self._tokens(continuation)
        return together, len(before)

    def _require_room(self, prompt: int, reply: int) -> None:
        if prompt + reply > self.context_window:
            raise RplaError(
                f"The prompt has {prompt} tokens and the reply up to {reply}; {self.name_string} has room for "
                f"{self.context_window} together.",
                "Lower max_tokens, use a shorter card, or another model.",
            )

    def _prompt(self, messages: Sequence[BaseMessage]) -> str:
        _, tokenizer = self._read()
        if not tokenizer.chat_template:
            raise RplaError(
                f"{self.name_string} has no chat template, so it cannot be talked to.",
                "Use a model tuned for chat, or put its chat_template.jinja into the folder.",
            )
        try:
            return str(tokenizer.apply_chat_template(chat_dicts(messages), tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise RplaError(f"The chat template of {self.name_string} refuses these messages: {error}") from error

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self._read()[1]
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _read(self) -> tuple[Any, Any]:
        """Config and tokenizer."""
        with self._lock:
            if self._tokenizer is None:
                source = self._source()
                what, hint = f"{self.folder} is not a model that transformers knows", "Is it a folder of a text model?"
                if "local_files_only" not in source:
                    what, hint = f"{self.folder} could not be had from the hub", "Give a folder, or check the name."
                with _explained(what, hint):
                    self._config = transformers.AutoConfig.from_pretrained(**source)
                    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
                    # The first call switches off what truncation its file asks for: not while other threads use it.
                    tokenizer.encode("", add_special_tokens=False)
                    self._tokenizer = tokenizer
            return self._config, self._tokenizer

    def _source(self) -> dict[str, Any]:
        """What `from_pretrained` is told in order to read the folder, or the hub, and run nothing found there."""
        path = Path(self.folder).expanduser()
        if not path.exists() and _HUB_ID.fullmatch(self.folder):
            return {"pretrained_model_name_or_path": self.folder, "trust_remote_code": False}
        if not path.is_dir():
            raise RplaError(f"There is no model folder {path}.", "Give a folder, or OWNER/NAME on the hub.")
        if not (path / "config.json").is_file():
            adapter = (path / "adapter_config.json").is_file()
            raise RplaError(
                f"{path} is not a model folder: it has no config.json.",
                "It is an adapter: give its base model's folder, and this one as the adapter." if adapter else "",
            )
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True, "trust_remote_code": False}

    def _started(self) -> Batcher:
        if self._batcher is None:
            _, tokenizer = self._read()
            self._model = self._weights()
            self._batcher = Batcher(
                self.name_string,
                self._model,
                lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
                self._ends(),
                self.batch_size,
            )
        return self._batcher

    def _weights(self) -> Any:
        with _explained(f"The device {self.device} cannot be used", "Set hf.device to auto, cpu, cuda or mps."):
            device = torch.device(_best_device() if self.device == "auto" else self.device)
            torch.empty(1, device=device)
        dtype = _best_dtype(device) if self.dtype == "auto" else getattr(torch, self.dtype)
        hint = "Get the folder again: its safetensors are missing, truncated or damaged."
        with _no_progress_bar(), _explained(f"The weights of {self.folder} could not be loaded", hint):
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                **self._source(), dtype=dtype, use_safetensors=True, output_loading_info=True
            )
        if missing := sorted(found["missing_keys"]):
            raise RplaError(f"The weights of {self.folder} lack {len(missing)} tensors, such as {missing[0]}.", hint)
        if self.adapter:
            model = self._adapted(model)
        with _explained(f"{self.folder} could not be put on {device}", "Does it fit into that device's memory?"):
            model = model.to(device).eval()
        _log.info("%s runs on %s in %s.", self.name_string, device, dtype)
        return model

    def _adapted(self, model: Any) -> Any:
        """The model with the adapter's layers in it."""
        folder = Path(self.adapter).expanduser()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).is_file():
                raise RplaError(f"{folder} is not an adapter: it has no {name}.", "Give the folder that PEFT saved.")
        try:
            import peft
        except ModuleNotFoundError as error:
            raise MissingExtra("An adapter", "local") from error
        misfit = f"The adapter {folder} does not fit {self.folder}"
        hint = "Was it trained on another base model, or is it damaged?"
        with _explained(misfit, hint), warnings.catch_warnings():
            # peft 0.21 asks transformers under a name that it deprecates.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            config = peft.PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            if config.is_prompt_learning:
                raise ValueError(f"{config.peft_type} adapters are not supported; LoRA's are")
            wrapped = peft.PeftModel(model, config)
            found = wrapped.load_adapter(str(folder), "default")
        # peft itself takes both for granted, and would run an adapter that is only half there.
        if strange := [*found.missing_keys, *found.unexpected_keys]:
            raise RplaError(f"{misfit}: {len(strange)} tensors do not match, such as {strange[0]}.", hint)
        return wrapped.get_base_model()

    def _ends(self) -> frozenset[int]:
        """The tokens that end a reply: those the model names, and what its chat template puts after one."""
        tokenizer = self._tokenizer
        named = [
            self._model.generation_config.eos_token_id,
            getattr(self._model.config, "eos_token_id", None),
            tokenizer.eos_token_id,
        ]
        ends = {token for one in named for token in (one if isinstance(one, list) else [one]) if token is not None}
        turn = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
        with contextlib.suppress(TemplateError):
            text = tokenizer.apply_chat_template(turn, tokenize=False) if tokenizer.chat_template else ""
            after = self._tokens(text.rpartition(_MARK)[2].strip())
            known = tokenizer.added_tokens_decoder
            ends |= {token for token in after[:1] if token in known and known[token].special}
        return frozenset(ends)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        good = any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if good else torch.float32


@contextlib.contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Turn whatever a library raises over a bad folder into an RplaError that says what was being done."""
    try:
        yield
    except RplaError:
        raise
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RplaError(f"{what}: {said}", hint) from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    # transformers writes its bar to the terminal, over whatever a front end shows there.
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
