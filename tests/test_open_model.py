import asyncio
import json
import socket
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rpla.core.errors import MissingExtra, RplaError
from rpla.core.home import Home
from rpla.core.loop import run_sync
from rpla.core.models.base import Options, RplaChatModel, collect
from rpla.core.models.llamacpp import LlamaCppModel
from rpla.core.models.open import open_model
from rpla.core.models.openai import OpenAIModel
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import OpenAISettings, Settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def stocked(home: Home) -> Home:
    home.models.mkdir()
    for name in ("smollm2-135m", "mine"):
        (home.models / f"{name}.gguf").write_bytes(b"GGUF")
    return home


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Authorization"] != "Bearer wrong" else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{silent.getsockname()[1]}/v1"


def opened(name: str, home: Home, settings: Settings | None = None, **more: Any) -> RplaChatModel:
    model = open_model(name, settings or Settings(), home, **more)
    assert isinstance(model, RplaChatModel)
    return model


def refusal(name: str, home: Home, settings: Settings | None = None, **more: Any) -> RplaError:
    with pytest.raises(RplaError) as caught:
        open_model(name, settings or Settings(), home, **more)
    return caught.value


def at(url: str, **more: Any) -> Settings:
    return Settings(openai=OpenAISettings(base_url=url), **more)


async def said(model: RplaChatModel) -> str:
    return (await collect(model.pieces([], Options()))).text


async def test_scripted_replies_and_the_last_again(home: Home) -> None:
    model = opened("scripted:one two|three", home)
    assert [await said(model) for _ in range(3)] == ["one two", "three", "three"]


async def test_scripted_alone_says_what_it_is(home: Home) -> None:
    model = opened("scripted:", home)
    assert isinstance(model, ScriptedModel)
    assert "scripted model" in await said(model)
    assert "scripted model" in await said(model)


@pytest.mark.parametrize("name", ["llamacpp:mine", "mine"])
def test_models_of_the_shelf(name: str, stocked: Home) -> None:
    settings = Settings.model_validate({"llamacpp": {"context": 1024, "slots": 2, "threads": 3, "gpu_layers": 0}})
    model = opened(name, stocked, settings)
    assert isinstance(model, LlamaCppModel)
    assert model.name_string == "llamacpp:mine"
    assert Path(model.path) == stocked.models / "mine.gguf"
    assert (model.context, model.slots, model.threads, model.gpu_layers) == (1024, 2, 3, 0)


@pytest.mark.parametrize("scheme", ["llamacpp:", ""])
def test_a_path_is_a_model(scheme: str, home: Home, tmp_path: Path) -> None:
    file = tmp_path / "some where.gguf"
    file.write_bytes(b"GGUF")
    assert opened(f"{scheme}{file}", home).name_string == f"llamacpp:{file}"
    assert "no model file" in refusal(f"{scheme}{tmp_path}/none.gguf", home).message


def test_llamacpp_alone_is_the_default_model(stocked: Home) -> None:
    assert opened("llamacpp:", stocked).name_string == "llamacpp:smollm2-135m"


async def test_a_real_model_speaks(smollm2_gguf: Path, home: Home) -> None:
    model = opened(f"llamacpp:{smollm2_gguf}", home, Settings.model_validate({"llamacpp": {"threads": 1, "slots": 1}}))
    assert (await collect(model.pieces([], Options(max_tokens=3)))).text


def test_openai(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    settings = Settings(openai=OpenAISettings(api_key_env="MY_KEY", context=999, timeout_s=7, retries=1))
    model = opened("openai:org/name:tag", home, settings)
    assert isinstance(model, OpenAIModel)
    assert (model.name_string, model.base_url, model.context_window) == ("openai:org/name:tag", "", 999)
    assert (model.timeout_s, model.retries, model.api_key_env) == (7, 1, "MY_KEY")
    assert model.api_key.get_secret_value() == "sk-secret"


def test_openai_address_of_the_settings_goes_before_the_environment(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://environment/v1")
    by_environment, by_settings = opened("openai:x", home), opened("openai:x", home, at("http://settings/v1"))
    assert isinstance(by_environment, OpenAIModel)
    assert isinstance(by_settings, OpenAIModel)
    assert (by_environment.base_url, by_settings.base_url) == ("http://environment/v1", "http://settings/v1")


class FakeHfModel:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields


def test_hf_takes_an_adapter(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rpla.core.models.hf")
    monkeypatch.setattr(module, "HfModel", FakeHfModel, raising=False)
    monkeypatch.setitem(sys.modules, "rpla.core.models.hf", module)
    settings = Settings.model_validate({"hf": {"dtype": "float32", "device": "cpu", "batch": 4}})
    model: Any = open_model("hf:some/folder", settings, home, adapter="a/b")
    assert model.fields == {"folder": "some/folder", "adapter": "a/b", "dtype": "float32", "device": "cpu", "batch": 4}


def test_hf_without_its_packages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blocked:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "rpla.core.models.hf":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "rpla.core.models.hf", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    error = refusal("hf:folder", home)
    assert isinstance(error, MissingExtra)
    assert "rpla[local]" in error.hint


@pytest.mark.parametrize("name", ["mine", "llamacpp:mine", "openai:x", "scripted:hi", "auto"])
def test_adapters_only_where_they_fit(name: str, stocked: Home) -> None:
    error = refusal(name, stocked, adapter="some/adapter")
    assert "cannot take the adapter some/adapter" in error.message
    assert "hf:" in error.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mime", "Did you mean mine?"),
        ("llamacpp:mime", "Did you mean mine?"),
        ("lamacpp:mine", "Did you mean llamacpp:?"),
        ("opeani:x", "Did you mean openai:?"),
        ("zzzz:x", "Known: hf:, llamacpp:, openai:, scripted:."),
        ("atuo", "Did you mean auto?"),
        ("openai:", "Use openai:NAME"),
        ("hf:", "Use hf:FOLDER"),
        ("vllm:big", "openai:MODEL"),
        ("", "Known: "),
    ],
)
def test_what_names_nothing_gets_a_hint(name: str, hint: str, stocked: Home) -> None:
    assert hint in refusal(name, stocked).hint


@pytest.mark.parametrize("name", ["auto", "smollm2-135m", "llamacpp:smollm2-135m", "llamacpp:"])
def test_a_model_that_is_not_pulled_yet(name: str, home: Home) -> None:
    assert refusal(name, home).hint == "Run: rpla models pull smollm2-135m"


def test_auto_takes_the_settings_first(stocked: Home, endpoint: str) -> None:
    assert opened("auto", stocked, at(endpoint, model="mine")).name_string == "llamacpp:mine"


def test_auto_takes_the_endpoint_second(stocked: Home, endpoint: str) -> None:
    model = opened("auto", stocked, at(endpoint))
    assert isinstance(model, OpenAIModel)
    assert (model.name_string, model.base_url) == ("openai:first", endpoint)


def test_auto_takes_the_endpoint_of_the_environment(
    stocked: Home, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint)
    assert opened("auto", stocked).name_string == "openai:first"


def test_auto_takes_the_default_model_third(stocked: Home) -> None:
    assert opened("auto", stocked).name_string == "llamacpp:smollm2-135m"


def test_auto_passes_over_an_endpoint_that_does_not_answer(
    stocked: Home, nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened("auto", stocked, at(nobody)).name_string == "llamacpp:smollm2-135m"
    assert nobody in caplog.text


def test_auto_passes_over_an_endpoint_that_refuses_the_key(
    stocked: Home, endpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    assert opened("auto", stocked, at(endpoint)).name_string == "llamacpp:smollm2-135m"
    assert "401" in caplog.text


async def test_auto_from_within_event_loops(stocked: Home, endpoint: str) -> None:
    async def name() -> str:
        return opened("auto", stocked, at(endpoint)).name_string

    assert await name() == "openai:first"
    assert await asyncio.to_thread(lambda: run_sync(name())) == "openai:first"
