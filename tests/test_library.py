import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rpla.core.card import card_json, read_card
from rpla.core.character import Character, Profile
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.library import CharacterLibrary

BUNDLED = Path(__file__).parent.parent / "rpla" / "characters"
SLUGS = sorted(path.name for path in BUNDLED.iterdir() if path.is_dir())
HOSTILE = [
    *("..", ".", "", "/", "../x", "/etc/passwd", "..\\x", "C:\\x", "a/b", "a\0b", "con", "com1", "nul", "x" * 300),
    *(".trash", "Ada", "ada ", "ada\n", "%2E%2E%2F", "~", "ａｄａ", "\ud800"),
]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def library(home: Home) -> CharacterLibrary:
    return CharacterLibrary(home)


def someone(name: str = "Eve", **fields: object) -> Character:
    return Character(id="", slug="", name=name, **fields)  # type: ignore[arg-type]


def card_file(tmp_path: Path, name: str = "Eve", **fields: object) -> Path:
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"name": name, "description": "d", **fields}))
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- adding and finding


def test_nothing_is_created_by_looking(library: CharacterLibrary, home: Home) -> None:
    library.entries()
    assert library.get_by_id("0" * 32) is None
    assert not home.root.exists()


def test_an_added_character_is_found_by_slug_name_and_id(library: CharacterLibrary, home: Home) -> None:
    profile = Profile(label="Zoë", description="A poet", aliases=("Z",))
    added = library.add(someone("Zoë Ngata", description="Writes.", tags=("poet",), profile=profile))
    assert added.slug == "zoe-ngata"
    assert re.fullmatch("[0-9a-f]{32}", added.id)
    for found in (library.find("zoe-ngata"), library.find("ZOË  NGATA"), library.get_by_id(added.id)):
        assert found == added
    entry = next(entry for entry in library.entries() if entry.slug == added.slug)
    assert (entry.name, entry.line, entry.tags, entry.bundled, entry.broken) == (
        *("Zoë Ngata", "A poet", ("poet",), False, ""),
    )
    assert files(home.characters / added.slug) == {"card.json", "meta.json", "profile.json"}
    assert json.loads((home.characters / added.slug / "meta.json").read_text()) == {"schema": 1, "id": added.id}


def test_an_unknown_name_offers_the_nearest(library: CharacterLibrary) -> None:
    library.add(someone("Florence Nightingale"))
    with pytest.raises(RplaError) as unknown:
        library.find("florense-nightingal")
    assert "Did you mean florence-nightingale" in unknown.value.hint


def test_a_name_that_two_have_is_refused_with_both_slugs(library: CharacterLibrary) -> None:
    library.add(someone("Eve of Oz"))
    library.add(someone("EVE OF OZ"))
    with pytest.raises(RplaError) as ambiguous:
        library.find("eve of oz")
    assert "eve-of-oz, eve-of-oz-2" in ambiguous.value.hint
    assert library.find("eve-of-oz-2").name == "EVE OF OZ"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Eve", "eve"),
        ("  Dr. Eve -- Moreau! ", "dr-eve-moreau"),
        ("../../etc/passwd", "etc-passwd"),
        ("..\\..\\x", "x"),
        ("CON", "con-2"),
        ("a\0b", "a-b"),
        ("e" * 300, "e" * 48),
        ("Renée", "renee"),
    ],
)
def test_a_name_becomes_a_harmless_slug(library: CharacterLibrary, home: Home, name: str, slug: str) -> None:
    assert library.add(someone(name)).slug == slug
    assert files(home.root) == {f"characters/{slug}/card.json", f"characters/{slug}/meta.json"}


@pytest.mark.parametrize("name", ["紫式部", "Достоевский X", "…", "🙂", ".."])
def test_a_name_with_little_ascii_gets_a_slug_of_its_id(library: CharacterLibrary, name: str) -> None:
    added = library.add(someone(name))
    assert added.slug == f"character-{added.id[:12]}"
    assert library.find(name) == added


def test_a_bundled_slug_is_never_taken(library: CharacterLibrary) -> None:
    copy = library.add(library.find(SLUGS[0]))
    assert (copy.slug, copy.bundled) == (f"{SLUGS[0]}-2", False)
    assert library.find(SLUGS[0]).bundled
    assert copy.profile == library.find(SLUGS[0]).profile


def test_imports_of_the_same_name_keep_both(library: CharacterLibrary, tmp_path: Path) -> None:
    first, _ = library.import_file(card_file(tmp_path, description="one"))
    second, _ = library.import_file(card_file(tmp_path, description="two"))
    assert (first.slug, second.slug) == ("eve", "eve-2")
    assert first.id != second.id
    assert (library.find("eve").description, library.find("eve-2").description) == ("one", "two")


# --- names are no paths


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_no_file(library: CharacterLibrary, home: Home, name: str) -> None:
    eve = library.add(someone())
    secret = home.root / "secret"
    secret.mkdir()
    (secret / "card.json").write_text('{"name": "Secret"}')
    before = files(home.root)
    for attempt in (
        lambda: library.find(name),
        lambda: library.remove(name),
        lambda: library.save(replace(eve, slug=name)),
        lambda: library.notes(replace(eve, slug=name)),
        lambda: library.notes(replace(eve, slug=name, bundled=True)),
    ):
        with pytest.raises(RplaError) as refused:
            attempt()
        str(refused.value).encode()
    assert files(home.root) == before


@pytest.mark.parametrize("target", ["outside", "home", "characters"])
def test_a_folder_that_is_a_link_out_of_the_library_is_refused(
    library: CharacterLibrary, home: Home, tmp_path: Path, target: str
) -> None:
    library.add(someone())
    outside = {"outside": tmp_path / "outside", "home": home.root / "x", "characters": tmp_path / "characters-x"}[
        target
    ]
    outside.mkdir()
    (outside / "card.json").write_text('{"name": "Mallory"}')
    (outside / "meta.json").write_text(json.dumps({"schema": 1, "id": "a" * 32}))
    (home.characters / "mallory").symlink_to(outside)
    for attempt in (lambda: library.find("mallory"), lambda: library.remove("mallory")):
        with pytest.raises(RplaError, match="leads out of the character library"):
            attempt()
    assert library.get_by_id("a" * 32) is None
    assert [entry.broken for entry in library.entries() if entry.slug == "mallory"] != [""]
    assert files(outside) == {"card.json", "meta.json"}


@pytest.mark.parametrize("name", ["card.json", "meta.json", "profile.json", "notes.md"])
def test_a_file_that_is_a_link_out_of_the_library_is_not_read(
    library: CharacterLibrary, home: Home, tmp_path: Path, name: str
) -> None:
    eve = library.add(someone())
    path = home.characters / "eve" / name
    (tmp_path / "secret").write_text("the secret")
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(RplaError, match="leads out of the character library"):
        library.notes(eve) if name == "notes.md" else library.find("eve")


def test_a_trash_folder_that_leads_out_is_refused(library: CharacterLibrary, home: Home, tmp_path: Path) -> None:
    library.add(someone())
    (home.characters / ".trash").symlink_to(tmp_path)
    with pytest.raises(RplaError, match="leads out"):
        library.remove("eve")
    assert library.find("eve").name == "Eve"


# --- damage


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("card.json", None),
        ("card.json", ""),
        ("card.json", "[" * 100_000),
        ("card.json", '{"name": "\\ud800"}'),
        ("meta.json", None),
        ("meta.json", "{}"),
        ("meta.json", '{"schema": 99, "id": "00000000000000000000000000000000"}'),
        ("meta.json", '{"schema": 1, "id": "../x"}'),
        ("profile.json", '{"label": 1}'),
    ],
)
def test_one_damaged_folder_is_listed_as_such_and_hides_no_other(
    library: CharacterLibrary, home: Home, name: str, content: str | None
) -> None:
    library.add(someone("Good"))
    bad = library.add(someone("Bad"))
    path = home.characters / "bad" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    listed = {entry.slug: entry.broken for entry in library.entries()}
    assert listed["bad"]
    assert [slug for slug, broken in listed.items() if broken] == ["bad"]
    assert library.find("good").name == "Good"
    with pytest.raises(RplaError):
        library.find("bad")
    library.remove("bad")
    assert "bad" not in {entry.slug for entry in library.entries()}
    assert library.get_by_id(bad.id) is None


def test_stray_files_are_no_characters_and_folders_with_odd_names_are_damaged_ones(
    library: CharacterLibrary, home: Home
) -> None:
    (home.characters / "Odd Name").mkdir(parents=True)
    (home.characters / ".hidden").mkdir()
    (home.characters / "stray.txt").write_text("x")
    own = [entry for entry in library.entries() if not entry.bundled]
    assert [(entry.slug, bool(entry.broken)) for entry in own] == [("Odd Name", True)]


# --- saving and removing


def test_a_saved_change_is_read_back_and_nothing_else_is_left_behind(library: CharacterLibrary, home: Home) -> None:
    eve = library.add(someone(profile=Profile(label="Eve", description="First")))
    library.save(replace(eve, scenario="A garden", profile=None))
    assert library.find("eve") == replace(eve, scenario="A garden", profile=None)
    assert files(home.characters) == {"eve/card.json", "eve/meta.json"}


def test_unknown_card_fields_survive_import_save_and_export(library: CharacterLibrary, tmp_path: Path) -> None:
    library.import_file(card_file(tmp_path, x_mine={"deep": [1, None]}))
    library.save(replace(library.find("eve"), scenario="A garden"))
    library.export(library.find("eve"), tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == {"name": "Eve", "description": "d", "scenario": "A garden", "x_mine": {"deep": [1, None]}}


def test_a_write_that_fails_leaves_the_old_card(
    library: CharacterLibrary, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    eve = library.add(someone())
    before = files(home.characters)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for attempt in (lambda: library.save(replace(eve, name="Changed")), lambda: library.add(someone("Other"))):
        with pytest.raises(RplaError, match="No space left"):
            attempt()
    assert library.find("eve") == eve
    assert files(home.characters) == before
    assert [path.name for path in home.characters.iterdir()] == ["eve"]


def test_only_the_users_own_characters_are_saved(library: CharacterLibrary) -> None:
    eve = library.add(someone())
    for character in (library.find(SLUGS[0]), replace(eve, id="f" * 32), replace(eve, slug="nobody")):
        with pytest.raises(RplaError):
            library.save(character)


def test_removing_moves_to_the_trash_and_leaves_the_slug_free(library: CharacterLibrary, home: Home) -> None:
    eve = library.add(someone(description="first"))
    library.remove("eve")
    assert library.get_by_id(eve.id) is None
    assert json.loads((home.characters / ".trash" / f"eve-{eve.id}" / "card.json").read_text())["data"]["name"] == "Eve"
    again = library.add(someone(description="second"))
    assert again.slug == "eve"
    library.remove("eve")
    assert len(list((home.characters / ".trash").iterdir())) == 2


def test_bundled_and_unknown_characters_are_not_removed(library: CharacterLibrary) -> None:
    with pytest.raises(RplaError, match="comes with rpla"):
        library.remove(SLUGS[0])
    assert library.find(SLUGS[0])
    with pytest.raises(RplaError, match="no character nobody"):
        library.remove("nobody")


# --- files in and out


def test_an_import_reports_its_repairs(library: CharacterLibrary, tmp_path: Path) -> None:
    _, repairs = library.import_file(card_file(tmp_path, scenario=None))
    assert "scenario was null; read as empty." in repairs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("card.png", b"\x89PNG\r\n", "later version"),
        ("card.charx", b"PK\x03\x04", "later version"),
        ("card.json", b"\x89PNG\r\n", "later version"),
        ("card.json", b"nope", "not JSON"),
        ("card.json", b" " * (8 * 1024**2 + 1), "larger than 8 MB"),
        ("folder", None, "is not a file"),
        ("gone.json", None, "is not there"),
        ("nul\0.json", None, "is not there"),
        ("x" * 300, None, "cannot be read"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_that_cannot_be_imported_adds_nothing(
    library: CharacterLibrary, home: Home, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RplaError, match=message):
        library.import_file(tmp_path / name)
    assert not home.root.exists()


def test_a_pipe_is_refused_rather_than_waited_for(library: CharacterLibrary, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(RplaError, match="is not a file"):
        library.import_file(tmp_path / "pipe.json")


def test_export_overwrites_only_when_asked(library: CharacterLibrary, tmp_path: Path) -> None:
    eve, path = library.add(someone()), tmp_path / "eve.json"
    path.write_text("mine")
    with pytest.raises(RplaError, match="already"):
        library.export(eve, path)
    assert path.read_text() == "mine"
    library.export(eve, path, "v1", overwrite=True)
    assert json.loads(path.read_text())["name"] == "Eve"


@pytest.mark.parametrize("name", ["eve.png", "no/such/folder/eve.json", ".", "x" * 300, "nul\0.json"])
def test_an_export_that_cannot_be_written_says_so(library: CharacterLibrary, tmp_path: Path, name: str) -> None:
    eve = library.add(someone())
    with pytest.raises(RplaError):
        library.export(eve, tmp_path / name, overwrite=True)


def test_a_users_slug_hides_a_bundled_one_that_chats_still_reach_by_id(library: CharacterLibrary, home: Home) -> None:
    eve = library.add(someone())
    (home.characters / "eve").rename(home.characters / SLUGS[0])
    assert library.find(SLUGS[0]).id == eve.id
    assert [entry.bundled for entry in library.entries() if entry.slug == SLUGS[0]] == [False]
    hidden = library.get_by_id(id_of("bundled", SLUGS[0]))
    assert hidden is not None
    assert hidden.bundled


def test_notes_of_ones_own_character_are_empty_until_written(library: CharacterLibrary, home: Home) -> None:
    eve = library.add(someone())
    assert library.notes(eve) == ""
    (home.characters / "eve" / "notes.md").write_text("# Eve")
    assert library.notes(eve) == "# Eve"


# --- the bundled characters


@pytest.mark.parametrize("slug", SLUGS)
def test_a_bundled_character_keeps_the_promises_made_for_it(library: CharacterLibrary, slug: str) -> None:
    character = library.find(slug)
    assert (character.id, character.bundled) == (id_of("bundled", slug), True)
    assert library.get_by_id(character.id) == character
    assert library.find(character.name) == character
    assert len(character.greetings) >= 3
    assert character.example_dialogue.count("<START>") >= 8
    assert len(character.lore.entries) >= 6
    assert all(entry.keys and entry.content for entry in character.lore.entries)
    profile = character.profile
    assert profile is not None
    assert len(profile.claims) >= 15
    assert all(claim.source for claim in profile.claims)
    assert profile.catchphrases
    assert profile.relations
    assert profile.cannot_know
    assert 500 <= len(library.notes(character).split()) <= 2500


@pytest.mark.parametrize("slug", SLUGS)
def test_a_bundled_card_needs_no_repair_uses_two_macros_and_round_trips(slug: str) -> None:
    text = (BUNDLED / slug / "card.json").read_text(encoding="utf-8")
    character, repairs = read_card(text, slug=slug, id=id_of("bundled", slug), bundled=True)
    assert repairs == ()
    assert card_json(character) == json.loads(text)
    assert set(re.findall(r"\{\{.*?\}\}", text)) <= {"{{char}}", "{{user}}"}
    assert text.count("{{") == len(re.findall(r"\{\{(?:char|user)\}\}", text))
