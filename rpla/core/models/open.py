"""From a string, such as ``llamacpp:smollm2-135m``, to a chat model."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from rpla.core.errors import MissingExtra, RplaError
from rpla.core.home import Home
from rpla.core.models.shelf import DEFAULT_MODEL, Shelf
from rpla.core.nearest import nearest_hint
from rpla.core.settings import Settings

SCHEMES = ("llamacpp:", "hf:", "openai:", "scripted:")
"""How a model's string may begin; beside these there are ``auto`` and the names on the shelf."""

_PROBE_S = 2.0
_SCRIPTED_LINE = "I am a scripted model, and this is the only line I know. Choose another model to talk with."
_LOCAL_PACKAGES = ("torch", "transformers", "peft", "accelerate")
_in_use: WeakValueDictionary[str, BaseChatModel] = WeakValueDictionary()
_opening = threading.Lock()
_log = logging.getLogger(__name__)


def open_model(name: str, settings: Settings, home: Home, *, adapter: str = "") -> BaseChatModel:
    """The model that a string names. Weights are read, and servers asked, when it is first used.

    ``auto`` takes `settings.model`, else the first model of the endpoint that is configured if it answers within two
    seconds, else the default model of the shelf. Raises RplaError for a string that names nothing, for a model that is
    not at hand, and for an adapter where the model's kind takes none.
    """
    if name == "auto":
        return _open_auto(settings, home, adapter)
    scheme, colon, rest = name.partition(":")
    if adapter and colon and scheme != "hf":
        raise RplaError(f"{name} cannot take the adapter {adapter}.", "Adapters go onto hf: models.")
    match scheme if colon else "":
        case "":
            return _open_bare(name, settings, home, adapter)
        case "llamacpp":
            return _open_llamacpp(rest, settings, home)
        case "hf":
            return _open_hf(rest, settings, adapter)
        case "openai":
            return _open_openai(rest, settings)
        case "scripted":
            from rpla.core.models.scripted import ScriptedModel

            return ScriptedModel(*(rest.split("|") if rest else [_SCRIPTED_LINE]), cycle=True)
        case "vllm":
            raise RplaError(
                "vLLM models are reached through vLLM's own server.",
                "Run `vllm serve MODEL`, set openai.base_url to its URL, and use openai:MODEL.",
            )
    raise RplaError(f"Unknown kind of model: {scheme}: (in {name!r}).", nearest_hint(f"{scheme}:", SCHEMES))


def _open_auto(settings: Settings, home: Home, adapter: str) -> BaseChatModel:
    if settings.model != "auto":
        return open_model(settings.model, settings, home, adapter=adapter)
    served = ""
    if _base_url(settings):
        try:
            served = _first_served(settings)
        except RplaError as error:
            _log.warning("%s The default model is used instead.", error.message)
    return open_model(f"openai:{served}" if served else f"llamacpp:{DEFAULT_MODEL}", settings, home, adapter=adapter)


def _first_served(settings: Settings) -> str:
    from rpla.core.models.openai import endpoint_models

    def ask() -> list[str]:
        return asyncio.run(endpoint_models(_base_url(settings), _api_key(settings), _PROBE_S))

    # In a thread of its own: the caller's may be running an event loop.
    with ThreadPoolExecutor(max_workers=1) as thread:
        names = thread.submit(ask).result()
    if not names:
        raise RplaError(f"{_base_url(settings)} serves no model.")
    return names[0]


def _open_bare(name: str, settings: Settings, home: Home, adapter: str) -> BaseChatModel:
    known = [model.name for model in Shelf(home).models()]
    if name in known or name.endswith(".gguf"):
        return open_model(f"llamacpp:{name}", settings, home, adapter=adapter)
    raise RplaError(f"There is no model {name!r}.", nearest_hint(name, [*known, *SCHEMES, "auto"]))


def _open_llamacpp(name: str, settings: Settings, home: Home) -> BaseChatModel:
    path = Shelf(home).path(name or DEFAULT_MODEL)
    from rpla.core.models.llamacpp import LlamaCppModel

    key = f"llamacpp:{path} {settings.llamacpp}"
    return _shared(
        key, lambda: LlamaCppModel(path=str(path), label=name or DEFAULT_MODEL, **settings.llamacpp.model_dump())
    )


def _open_hf(folder: str, settings: Settings, adapter: str) -> BaseChatModel:
    if not folder:
        raise RplaError("hf: needs a model.", "Use hf:FOLDER, or hf:OWNER/NAME.")
    try:
        from rpla.core.models.hf import HfModel
    except ModuleNotFoundError as error:
        if error.name in _LOCAL_PACKAGES:
            raise MissingExtra("An hf: model", "local") from error
        raise
    key = f"hf:{folder} {adapter} {settings.hf}"
    return _shared(key, lambda: HfModel(folder=folder, adapter=adapter, **settings.hf.model_dump()))


def _open_openai(name: str, settings: Settings) -> BaseChatModel:
    if not name:
        raise RplaError("openai: needs a model.", "Use openai:NAME, with the name the endpoint knows it by.")
    from rpla.core.models.openai import OpenAIModel

    return OpenAIModel(
        model=name,
        base_url=_base_url(settings),
        api_key=SecretStr(_api_key(settings)),
        **settings.openai.model_dump(exclude={"base_url"}),
    )


def _shared(key: str, make: Callable[[], BaseChatModel]) -> BaseChatModel:
    """The model of that key that is in use already: weights are in memory once, however many agents speak with them."""
    with _opening:
        model = _in_use.get(key)
        if model is None:
            model = _in_use[key] = make()
        return model


def _base_url(settings: Settings) -> str:
    return settings.openai.base_url or os.environ.get("OPENAI_BASE_URL", "")


def _api_key(settings: Settings) -> str:
    return os.environ.get(settings.openai.api_key_env, "")
