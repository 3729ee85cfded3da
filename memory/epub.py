"""EPUB to text: a zip of XHTML in the order of its spine."""

import posixpath
import zipfile
import zlib
from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import unquote

from rpla.core.errors import RplaError
from rpla.memory.html import read_html
from rpla.memory.readers import LARGEST_FILE, Part, decoded

_MOST_ENTRIES = 20_000


def read_epub(data: bytes, name: str) -> tuple[str, list[Part]]:
    """The book's title and its parts.

    Raises RplaError where it is another kind of zip, encrypted, damaged, or unpacks to more than a book.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as book:
            return _read(_Files(book, name), name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise RplaError(f"{name} is a damaged EPUB: {error}.", "Get it anew, or add its text.") from None


def _read(files: "_Files", name: str) -> tuple[str, list[Part]]:
    container = files.read("META-INF/container.xml")
    if container is None:
        raise RplaError(f"{name} is a zip file and no EPUB.", "Unpack it and add the folder.")
    package = next((found["full-path"] for tag, found in _tags(container) if tag == "rootfile"), "")
    if not package or (listed := files.read(package)) is None:
        raise RplaError(f"{name} is a damaged EPUB: it does not say what is in it.", "Get it anew, or add its text.")
    tags = _tags(listed)
    folder = posixpath.dirname(package)
    items = {
        found["id"]: posixpath.normpath(posixpath.join(folder, unquote(found["href"])))
        for tag, found in tags
        if tag == "item" and found["id"]
    }
    spine = [items[found["idref"]] for tag, found in tags if tag == "itemref" and found["idref"] in items]
    locked = {
        unquote(found["uri"]) for tag, found in _tags(files.read("META-INF/encryption.xml") or "") if found["uri"]
    }
    if locked & set(spine):
        raise RplaError(f"{name} is encrypted.", "Add a copy that any reader can open.")
    parts: list[Part] = []
    title = ""
    for number, path in enumerate(dict.fromkeys(spine), 1):
        if (page := files.read(path)) is None:
            continue
        called, read = read_html(page)
        title = title or called
        parts += [
            part if part.place else Part(text=part.text, heading=part.heading, place=f"section {number}")
            for part in read
        ]
    return title, parts


class _Files:
    """Entries of the zip as text, up to a limit for all of them: a small zip can unpack to more than fits."""

    def __init__(self, book: zipfile.ZipFile, name: str) -> None:
        if len(book.infolist()) > _MOST_ENTRIES:
            raise RplaError(f"{name} has {len(book.infolist()):,} files in it.", "It is no book.")
        self._book, self._name, self._left = book, name, LARGEST_FILE

    def read(self, path: str) -> str | None:
        """An entry's text; None where there is none."""
        try:
            entry = self._book.getinfo(path)
        except KeyError:
            return None
        if entry.flag_bits & 1:
            raise RplaError(f"{self._name} is encrypted.", "Add a copy that any reader can open.")
        with self._book.open(entry) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise RplaError(
                f"{self._name} unpacks to more than {LARGEST_FILE >> 20} MiB of text.", "It is no book; leave it out."
            )
        return decoded(data, f"{self._name}: {path}")[0]


class _Attributes(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def _tags(xml: str) -> list[tuple[str, _Attributes]]:
    """Names, without prefixes, and attributes of all tags. An XML parser would resolve entities; this does not."""
    reader = _TagReader(convert_charrefs=True)
    reader.feed(xml)
    return reader.tags


class _TagReader(HTMLParser):
    def __init__(self, *, convert_charrefs: bool) -> None:
        super().__init__(convert_charrefs=convert_charrefs)
        self.tags: list[tuple[str, _Attributes]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag.rpartition(":")[2], _Attributes((key, value or "") for key, value in attrs)))
