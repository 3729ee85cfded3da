"""The characters there are: those that come with rpla, and the user's own in a folder each.

A name never becomes a path. Only a slug does, and what a slug leads to must lie inside the library's folder.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from shutil import rmtree

from rpla.core.card import ReadCard, Spec, card_json, read_card
from rpla.core.character import Character
from rpla.core.errors import RplaError
from rpla.core.files import json_bytes, read_file, unwritten, write_file
from rpla.core.home import Home
from rpla.core.ids import id_of, new_id
from rpla.core.nearest import nearest_hint
from rpla.core.profile import profile_json, read_profile
from rpla.core.untrusted_json import load_object, shown

_BUNDLED = Path(__file__).parent.parent / "characters"
_SLUG = re.compile("[a-z0-9][a-z0-9-]{0,63}")
_ID = re.compile("[0-9a-f]{32}")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_SCHEMA = 1
_TRASH = ".trash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A character in the library's list."""

    slug: str
    name: str
    line: str = ""
    """One line that says who this is."""
    tags: tuple[str, ...] = ()
    bundled: bool = False
    broken: str = ""
    """Why its files cannot be read; empty where they can."""


class CharacterLibrary:
    """The bundled characters and the user's own. A slug of the user's hides a bundled character of the same slug."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def entries(self) -> list[Entry]:
        """All characters, the bundled ones first; one with damaged files is listed with what is wrong with it."""
        own = list(self._own_slugs())
        listed = [(slug, True) for slug in _bundled_slugs() if slug not in own] + [(slug, False) for slug in own]
        return [self._entry(slug, bundled) for slug, bundled in listed]

    def find(self, name: str) -> Character:
        """The character with this slug, else the only one with this name, whatever the case of its letters.

        Raises:
            RplaError: There is none, or several have the name, or its files are damaged.
        """
        if _SLUG.fullmatch(name):
            if os.path.lexists(self.home.characters / name):
                return self._load_own(name)
            if name in _bundled_slugs():
                return _load_bundled(name)
        entries = self.entries()
        called = [entry for entry in entries if not entry.broken and _folded(entry.name) == _folded(name)]
        if len(called) > 1:
            slugs = ", ".join(entry.slug for entry in called)
            raise RplaError(f"Several characters are called {called[0].name}.", f"Say which one: {slugs}.")
        if not called:
            known = {entry.slug if entry.name.isascii() else entry.name for entry in entries}
            raise RplaError(f"There is no character called {shown(name)!r}.", nearest_hint(shown(name), known))
        return _load_bundled(called[0].slug) if called[0].bundled else self._load_own(called[0].slug)

    def get_by_id(self, id: str) -> Character | None:
        """The character with this id, if there is one.

        Raises:
            RplaError: Its files are damaged.
        """
        for slug in _bundled_slugs():
            if id_of("bundled", slug) == id:
                return _load_bundled(slug)
        for slug in self._own_slugs():
            try:
                found = self._read_id(self._folder(slug))
            except RplaError:
                continue
            if found == id:
                return self._load_own(slug)
        return None

    def add(self, character: Character) -> Character:
        """Keep a character as a new one of the user's, with an id and a slug of its own; returns it with those.

        Raises:
            RplaError: It cannot be written.
        """
        id = new_id()
        files = {"card.json": card_json(character), "meta.json": {"schema": _SCHEMA, "id": id}}
        if character.profile is not None:
            files["profile.json"] = profile_json(character.profile)
        staged = self.home.characters / f".new-{id}"
        try:
            staged.mkdir(parents=True)
            for name, value in files.items():
                write_file(staged / name, json_bytes(value))
            slug = self._settle(staged, _slug_of(character.name, id))
        except OSError as error:
            rmtree(staged, ignore_errors=True)
            raise unwritten(self.home.characters, error) from None
        return replace(character, id=id, slug=slug, bundled=False)

    def save(self, character: Character) -> None:
        """Write a changed character of the user's back; a crash leaves the old card or the new one.

        Raises:
            RplaError: It is bundled, is not in the library, or cannot be written.
        """
        if character.bundled:
            raise RplaError(f"{character.name} comes with rpla and is not edited.", "Add a copy of it and edit that.")
        folder = self._folder(character.slug)
        if not folder.is_dir() or self._read_id(folder) != character.id:
            raise RplaError(f"The library does not hold this {character.name}.", "Add it, or load it again.")
        card = json_bytes(card_json(character))
        try:
            if character.profile is None:
                (folder / "profile.json").unlink(missing_ok=True)
            else:
                write_file(folder / "profile.json", json_bytes(profile_json(character.profile)))
            write_file(folder / "card.json", card)
        except OSError as error:
            raise unwritten(folder, error) from None

    def import_file(self, path: Path) -> ReadCard:
        """Add the character of a card file; those of the same name stay as they are.

        Raises:
            RplaError: The file cannot be read or holds no card.
        """
        data = read_file(path)
        if path.suffix.lower() in (".png", ".charx") or data.startswith((b"\x89PNG", b"PK\x03\x04")):
            raise RplaError(
                "Cards in PNG and CHARX files are read in a later version of rpla.",
                "Export the card as JSON from the program it is in, and import that.",
            )
        character, repairs = read_card(data, slug="", id="")
        return ReadCard(self.add(character), repairs)

    def export(self, character: Character, path: Path, spec: Spec | None = None, overwrite: bool = False) -> None:
        """Write a character's card to a JSON file; `rpla.core.card.card_losses` names what a format drops.

        Raises:
            RplaError: The file is there and ``overwrite`` is not set, or it cannot be written.
        """
        if path.suffix.lower() in (".png", ".charx"):
            raise RplaError("Cards are written as JSON only in this version of rpla.", "Let the file end in .json.")
        data = json_bytes(card_json(character, spec))
        if os.path.lexists(path) and (path.is_dir() or not overwrite):
            raise RplaError(f"There is something at {path} already.", "Name another file, or ask to overwrite it.")
        try:
            write_file(path, data)
        except (OSError, ValueError) as error:
            raise unwritten(path, error) from None

    def remove(self, slug: str) -> None:
        """Move a character of the user's, damaged ones included, to the trash folder beside the others.

        Raises:
            RplaError: It is bundled, there is none, or it cannot be moved.
        """
        folder = self._folder(slug)
        if not folder.is_dir():
            if slug in _bundled_slugs():
                raise RplaError(f"{slug} comes with rpla and is not removed.", "Only your own characters are.")
            raise RplaError(f"You have no character {slug}.", nearest_hint(slug, self._own_slugs()))
        try:
            id = self._read_id(folder)
        except RplaError:
            id = new_id()
        try:
            (self.home.characters / _TRASH).mkdir(exist_ok=True)
            trash = self._inside(self.home.characters / _TRASH)
            name = f"{slug}-{id}"
            if os.path.lexists(trash / name):
                name = f"{slug}-{new_id()}"
            folder.rename(trash / name)
        except OSError as error:
            raise unwritten(folder, error) from None

    def notes(self, character: Character) -> str:
        """The longer text about a character that comes beside its card, in Markdown; empty where there is none.

        Raises:
            RplaError: It cannot be read.
        """
        folder = _bundled_folder(character.slug) if character.bundled else self._folder(character.slug)
        path = folder / "notes.md" if character.bundled else self._inside(folder / "notes.md")
        if not path.exists():
            return ""
        try:
            return read_file(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise RplaError(f"{path} is not text in UTF-8.", "Save it as UTF-8.") from None

    def _own_slugs(self) -> Iterator[str]:
        """Names of the folders in the user's library, good slugs or not."""
        try:
            found = sorted(
                path.name for path in self.home.characters.iterdir() if os.path.isdir(path) or path.is_symlink()
            )
        except FileNotFoundError:
            return
        except OSError as error:
            raise RplaError(f"{self.home.characters} cannot be read: {error.strerror}.", "Check the folder.") from None
        yield from (name for name in found if not name.startswith("."))

    def _entry(self, slug: str, bundled: bool) -> Entry:
        try:
            character = _load_bundled(slug) if bundled else self._load_own(slug)
        except RplaError as error:
            return Entry(slug=shown(slug), name=shown(slug), bundled=bundled, broken=error.message)
        return Entry(slug=slug, name=character.name, line=character.line, tags=character.tags, bundled=bundled)

    def _load_own(self, slug: str) -> Character:
        folder = self._folder(slug)
        return _load(folder, slug, self._read_id(folder), guard=self._inside)

    def _read_id(self, folder: Path) -> str:
        meta, _ = load_object(read_file(self._inside(folder / "meta.json")), "meta.json")
        if meta.get("schema") != _SCHEMA:
            raise RplaError(f"{folder.name} was kept by another version of rpla.", "Update rpla.")
        if not isinstance(id := meta.get("id"), str) or not _ID.fullmatch(id):
            raise RplaError(f"{folder.name}/meta.json has no id.", "Import its card.json to add it again.")
        return id

    def _folder(self, slug: str) -> Path:
        _check_slug(slug)
        return self._inside(self.home.characters / slug)

    def _inside(self, path: Path) -> Path:
        """The path, if following every link in it leads to a place inside the user's library."""
        try:
            inside = path.resolve().is_relative_to(self.home.characters.resolve())
        except (OSError, RuntimeError):  # links in a circle
            inside = False
        if not inside:
            raise RplaError(f"{shown(path.name)} leads out of the character library.", f"Remove that link: {path}")
        return path

    def _settle(self, staged: Path, wanted: str) -> str:
        """Give a new folder the first free slug of ``wanted``, ``wanted-2``, ``wanted-3``…"""
        for number in count(1):
            slug = wanted if number == 1 else f"{wanted}-{number}"
            target = self.home.characters / slug
            if slug in _WINDOWS_DEVICES or slug in _bundled_slugs() or os.path.lexists(target):
                continue
            try:
                staged.rename(target)
            except OSError:
                if not os.path.lexists(target):  # else another process took it in between
                    raise
                continue
            return slug
        raise AssertionError


def _bundled_slugs() -> list[str]:
    try:
        return sorted(path.name for path in _BUNDLED.iterdir() if (path / "card.json").is_file())
    except FileNotFoundError:
        return []


def _bundled_folder(slug: str) -> Path:
    _check_slug(slug)
    return _BUNDLED / slug


def _load_bundled(slug: str) -> Character:
    return _load(_bundled_folder(slug), slug, id_of("bundled", slug), bundled=True)


def _load(
    folder: Path, slug: str, id: str, *, bundled: bool = False, guard: Callable[[Path], Path] = lambda path: path
) -> Character:
    card = read_file(guard(folder / "card.json"))
    has_profile = os.path.lexists(folder / "profile.json")
    profile = read_profile(read_file(guard(folder / "profile.json"))) if has_profile else None
    return read_card(card, slug=slug, id=id, profile=profile, bundled=bundled).character


def _check_slug(slug: str) -> None:
    if not _SLUG.fullmatch(slug) or slug in _WINDOWS_DEVICES:
        raise RplaError(f"{shown(slug)!r} is not a character's short name.", "Those are made of a-z, 0-9 and dashes.")


def _slug_of(name: str, id: str) -> str:
    """A slug from what is ASCII in a name once its accents are off, or from the id where that is less than half."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.findall("[a-z0-9]+", ascii_name)
    if not words or 2 * len("".join(words)) < sum(letter.isalnum() for letter in name):
        return f"character-{id[:12]}"
    return "-".join(words)[:48].strip("-")


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())
