"""What characters look up: finding it, keeping it in step, and taking it away."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rpla.core.chatlog import Turn
from rpla.core.errors import MissingExtra, RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of, new_id
from rpla.core.settings import KnowledgeSettings
from rpla.memory import chroma, splitting
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.knowledge import Knowledge
from rpla.memory.looking_up import GivenRecaller, PassageRecaller
from rpla.memory.passage_store import PassageStore
from rpla.memory.passages import Passage
from rpla.memory.recall import Moment

ADA, HOLMES = id_of("bundled", "ada-lovelace"), id_of("bundled", "sherlock-holmes")
SETTINGS = KnowledgeSettings(chunk_tokens=40)
NOTES = """# Notes

## Family

Her mother taught her mathematics. Her father was a poet, and she never knew him.

## Engines

The Analytical Engine weaves algebraical patterns, as the loom weaves flowers and leaves.

## Horses

She rides most mornings and bets too freely at the races.
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def hashing() -> LazyEmbedder:
    embedder = LazyEmbedder("hashing")
    embedder.wait()
    return embedder


@pytest.fixture
def knowledge(home: Home) -> Iterator[Knowledge]:
    opened = Knowledge(home, hashing(), SETTINGS)
    yield opened
    opened.close()


def places(passages: list[Passage]) -> list[str]:
    return [passage.place for passage in passages]


def novel(folder: Path, paragraphs: int = 60) -> Path:
    """A book of numbered paragraphs; those of the second half tell of the murder."""
    draw = random.Random(7)
    words = ["mill", "river", "harbour", "lantern", "orchard", "market", "winter", "letter", "carriage", "sermon"]
    lines = []
    for number in range(paragraphs):
        told = "The murder was done by the vicar." if number >= paragraphs // 2 else "Nobody knew of any murder yet."
        lines.append(f"Paragraph {number}. {' '.join(draw.choices(words, k=25)).capitalize()}. {told}")
    folder.mkdir(exist_ok=True)
    (folder / "novel.txt").write_text("\n\n".join(lines))
    return folder / "novel.txt"


# Finding


def test_what_fits_is_found_with_source_place_and_reason(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    (first, *_) = knowledge.search(ADA, "What patterns does the Analytical Engine weave?", limit=3)
    assert (first.source, first.place, first.score) == ("notes.md", "Engines", 1.0)
    assert first.text.startswith("The Analytical Engine weaves")
    assert "words" in first.reason
    assert "meaning" in first.reason
    assert knowledge.passage(first.id) == Passage(
        id=first.id, source="notes.md", place="Engines", text=first.text, score=0.0, story_time=None, reason=""
    )
    assert knowledge.passage(new_id()) is None
    assert knowledge.take_notices() == []


def test_where_nothing_fits_nothing_is_found(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    for text in ("Hello!", "Which smartphone should I buy?", "", "  ", "?!", "\x00"):
        assert knowledge.search(ADA, text, limit=3) == [], text
    assert knowledge.search(ADA, "Analytical Engine", limit=0) == []


def test_whom_a_question_is_about_is_no_reason_to_find_anything(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "Ada Lovelace.md", NOTES)
    assert knowledge.search(ADA, "Which smartphone should I buy?", limit=3, about="Ada Lovelace") == []
    assert places(knowledge.search(ADA, "Do you ride most mornings?", limit=1, about="Ada Lovelace")) == ["Horses"]


def test_without_an_embedder_words_alone_are_searched(home: Home) -> None:
    knowledge = Knowledge(home, None, SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    assert places(knowledge.search(ADA, "Who taught her mathematics?", limit=3)) == ["Family"]
    assert places(knowledge.search(ADA, "races", limit=3)) == ["Horses"]
    assert knowledge.search(ADA, "smartphone", limit=3) == []
    assert not home.chroma.exists()
    assert knowledge.check() == []
    knowledge.close()


def test_a_character_never_finds_what_is_another_s(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    knowledge.add_text(HOLMES, "notes.md", "Toby is a mongrel with a splendid nose.")
    assert knowledge.search(HOLMES, "Analytical Engine", limit=9) == []
    assert knowledge.search(ADA, "Toby the mongrel", limit=9) == []
    assert [passage.source for passage in knowledge.search(HOLMES, "Toby the mongrel", limit=9)] == ["notes.md"]
    with pytest.raises(RplaError, match="is not an id"):
        knowledge.search("%", "engine", limit=1)
    with pytest.raises(RplaError, match="is not an id"):
        knowledge.add_text("ada", "notes.md", NOTES)


def test_ids_stay_when_a_text_is_added_again_elsewhere_and_what_did_not_change_keeps_its_vector(
    knowledge: Knowledge, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    (before,) = knowledge.search(ADA, "bets at the races", limit=1)
    other = Knowledge(Home(tmp_path / "other"), None, SETTINGS)
    other.add_text(ADA, "notes.md", NOTES)
    assert other.search(ADA, "bets at the races", limit=1)[0].id == before.id
    other.close()
    assert knowledge.embedder is not None
    embedder = knowledge.embedder.wait()
    embedded: list[str] = []
    monkeypatch.setattr(
        type(embedder), "__call__", lambda self, texts: (embedded.extend(texts), np.ones((len(texts), 256)))[1]
    )
    report = knowledge.add_text(ADA, "notes.md", NOTES.replace("a poet", "a lord"))
    assert report.changed == ("notes.md",)
    assert len(embedded) == 1
    assert "a lord" in embedded[0]
    assert knowledge.add_text(ADA, "notes.md", NOTES.replace("a poet", "a lord")).unchanged == ("notes.md",)
    assert len(embedded) == 1


def test_an_empty_text_takes_the_one_before_out(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    assert knowledge.add_text(ADA, "notes.md", " ").removed == ("notes.md",)
    assert knowledge.sources(ADA) == []
    assert knowledge.search(ADA, "Analytical Engine", limit=3) == []


def test_what_repeats_within_a_file_is_kept_as_often(knowledge: Knowledge) -> None:
    report = knowledge.add_text(ADA, "refrain.md", "# A\n\nRow, row.\n\n# A\n\nRow, row.\n")
    assert report.passages == knowledge.sources(ADA)[0].passages == 2


def test_a_change_of_how_passages_are_cut_is_followed(knowledge: Knowledge, home: Home, tmp_path: Path) -> None:
    file = novel(tmp_path)
    few = knowledge.add(ADA, file).passages
    smaller = Knowledge(home, hashing(), KnowledgeSettings(chunk_tokens=32))
    report = smaller.add(ADA, file)
    assert report.changed == ("novel.txt",)
    assert report.passages > few


def test_removing_takes_a_source_out_by_name_path_or_id(knowledge: Knowledge, tmp_path: Path) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    for folder in ("one", "two"):
        knowledge.add(ADA, novel(tmp_path / folder))
    with pytest.raises(RplaError, match="Several sources") as raised:
        knowledge.remove(ADA, "novel.txt")
    assert str(tmp_path / "one") in raised.value.hint
    knowledge.remove(ADA, str(tmp_path / "one" / "novel.txt"))
    knowledge.remove(ADA, "novel.txt")
    with pytest.raises(RplaError, match="There is no source"):
        knowledge.remove(ADA, "novel.txt")
    with pytest.raises(RplaError, match="There is no source"):
        knowledge.remove(HOLMES, "notes.md")
    assert [source.name for source in knowledge.sources(ADA)] == ["notes.md"]
    assert knowledge.search(ADA, "The murder was done by the vicar", limit=3) == []
    assert knowledge.check() == []


# Story time


@pytest.mark.parametrize("embedder", ["hashing", "words", "exact"])
def test_what_lies_after_the_cutoff_is_never_found(home: Home, tmp_path: Path, embedder: str) -> None:
    knowledge = Knowledge(home, None if embedder == "words" else hashing(), SETTINGS)
    knowledge.add(ADA, novel(tmp_path), story=True)
    if embedder == "exact":
        knowledge._meanings._chroma.destroy()
    asked = "The murder was done by the vicar."
    assert max(passage.story_time or 0 for passage in knowledge.search(ADA, asked, limit=50)) > 0.9
    knowledge.set_cutoff(ADA, 0.5)
    for limit in (1, 5, 50):
        found = knowledge.search(ADA, asked, limit=limit) + knowledge.search(ADA, "nobody knew of murder", limit=limit)
        assert found
        assert all((passage.story_time or 0) <= 0.5 and "by the vicar" not in passage.text for passage in found)
    assert any("by the vicar" in passage.text for passage in knowledge.search(ADA, asked, limit=5, cutoff=math.inf))
    assert knowledge.search(ADA, asked, limit=5, cutoff=0.0) == []
    knowledge.close()


def test_a_passage_ends_where_its_story_time_says(knowledge: Knowledge, tmp_path: Path) -> None:
    text = novel(tmp_path).read_text()
    knowledge.add(ADA, tmp_path / "novel.txt", story=True)
    for number in range(1, 10):
        cutoff = number / 10
        for passage in knowledge.search(ADA, "The murder, nobody knew of any", limit=50, cutoff=cutoff):
            assert text.index(passage.text) + len(passage.text) <= cutoff * len(text) + 1


def test_what_belongs_to_no_story_is_always_told_and_a_file_may_have_one_time(
    knowledge: Knowledge, tmp_path: Path
) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    (tmp_path / "letter.txt").write_text("The letter tells of the burnt orchard.")
    knowledge.add(ADA, tmp_path / "letter.txt", story_time=3)
    knowledge.set_cutoff(ADA, 2.5)
    assert knowledge.search(ADA, "the burnt orchard", limit=5) == []
    assert places(knowledge.search(ADA, "Analytical Engine patterns", limit=1)) == ["Engines"]
    knowledge.set_cutoff(ADA, 3)
    assert len(knowledge.search(ADA, "the burnt orchard", limit=5)) == 1


def test_a_file_keeps_its_times_when_it_is_added_again_without_saying_so(knowledge: Knowledge, tmp_path: Path) -> None:
    file = novel(tmp_path)
    knowledge.add(ADA, file, story=True)
    file.write_text(file.read_text() + "\n\nThe murder was forgotten.")
    assert knowledge.add(ADA, file).changed == ("novel.txt",)
    assert knowledge.sources(ADA)[0].story
    assert knowledge.add(ADA, file, story=False).changed == ("novel.txt",)
    assert {passage.story_time for passage in knowledge.search(ADA, "the murder", limit=9)} == {None}


def test_a_cutoff_is_kept_for_its_character_and_must_be_a_number(knowledge: Knowledge) -> None:
    knowledge.set_cutoff(ADA, 0.25)
    assert (knowledge.cutoff(ADA), knowledge.cutoff(HOLMES)) == (0.25, None)
    knowledge.set_cutoff(ADA, None)
    assert knowledge.cutoff(ADA) is None
    with pytest.raises(RplaError, match="not a time"):
        knowledge.set_cutoff(ADA, math.nan)


# Chroma, a rebuildable index


def test_chroma_and_comparing_every_vector_find_the_same(knowledge: Knowledge, tmp_path: Path) -> None:
    knowledge.add(ADA, novel(tmp_path, 300), story=True)
    asked = ["the winter sermon", "a lantern by the river", "Paragraph 17 orchard market"]
    first = [knowledge.search(ADA, text, limit=8, cutoff=0.8) for text in asked]
    assert knowledge.take_notices() == []
    knowledge._meanings._chroma.destroy()
    second = [knowledge.search(ADA, text, limit=8, cutoff=0.8) for text in asked]
    assert [notice.partition(";")[0] for notice in knowledge.take_notices()] == ["Chroma has no index yet"]
    assert knowledge.take_notices() == []
    for one, other in zip(first, second, strict=True):
        assert {passage.id for passage in one} == {passage.id for passage in other}
    assert any("Chroma" in fault for fault in knowledge.check())
    knowledge.rebuild()
    assert knowledge.check() == []
    assert knowledge.search(ADA, asked[0], limit=8, cutoff=0.8)
    assert knowledge.take_notices() == []


def test_chroma_holds_no_text(knowledge: Knowledge, home: Home, tmp_path: Path) -> None:
    knowledge.add(ADA, novel(tmp_path))
    assert knowledge.search(ADA, "the murder", limit=1)
    kept = b"".join(file.read_bytes() for file in home.chroma.rglob("*") if file.is_file())
    assert b"murder" not in kept
    assert b"vicar" not in kept


def damage_database(folder: Path) -> None:
    file = folder / "chroma.sqlite3"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_everything(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"junk")


def damage_to_nothing(folder: Path) -> None:
    (folder / "chroma.sqlite3").write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_database, damage_everything, damage_to_nothing, shutil.rmtree])
def test_without_a_sound_chroma_everything_is_found_all_the_same(home: Home, damage: object) -> None:
    knowledge = Knowledge(home, hashing(), SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    knowledge.close()
    assert callable(damage)
    damage(home.chroma)
    knowledge = Knowledge(home, hashing(), SETTINGS)
    assert places(knowledge.search(ADA, "What does the Analytical Engine weave?", limit=1)) == ["Engines"]
    (notice,) = knowledge.take_notices()
    assert "one by one" in notice
    assert "reindex" in notice
    knowledge.rebuild()
    assert knowledge.check() == []
    assert places(knowledge.search(ADA, "What does the Analytical Engine weave?", limit=1)) == ["Engines"]
    assert knowledge.take_notices() == []
    knowledge.close()


def test_chroma_out_of_step_is_told_and_not_used(knowledge: Knowledge, home: Home) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    knowledge.add_text(ADA, "other.md", "The difference engine adds.")
    store = PassageStore(home.knowledge)
    store.remove(ADA, [knowledge.sources(ADA)[0].id])  # as another process would, that has no Chroma
    store.close()
    assert [passage.source for passage in knowledge.search(ADA, "the difference engine", limit=3)] == ["other.md"]
    assert "out of step" in knowledge.take_notices()[0]


HOLDER = """
import sys
from pathlib import Path
from rpla.core.home import Home
from rpla.core.settings import KnowledgeSettings
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.knowledge import Knowledge
embedder = LazyEmbedder("hashing")
embedder.wait()
knowledge = Knowledge(Home(Path(sys.argv[1])), embedder, KnowledgeSettings())
knowledge.add_text(sys.argv[2], "other.md", "The difference engine adds.")
print("ready", flush=True)
sys.stdin.readline()
"""


def test_while_another_process_has_chroma_it_is_left_alone(home: Home) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.root), ADA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    knowledge = Knowledge(home, hashing(), SETTINGS)
    assert len(knowledge.search(ADA, "the difference engine", limit=3)) == 1
    assert "another process" in knowledge.take_notices()[0]
    knowledge.add_text(ADA, "notes.md", NOTES)
    assert places(knowledge.search(ADA, "What does the Analytical Engine weave?", limit=1)) == ["Engines"]
    with pytest.raises(RplaError, match="another process"):
        knowledge.rebuild()
    with pytest.raises(RplaError, match="another process") as raised:
        knowledge.erase(ADA)
    assert "reindex" in raised.value.hint
    assert knowledge.sources(ADA) == []
    holder.communicate("\n")
    knowledge.rebuild()
    assert knowledge.check() == []
    knowledge.close()


def test_two_in_one_process_share_chroma(knowledge: Knowledge, home: Home) -> None:
    other = Knowledge(home, hashing(), SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    other.add_text(ADA, "more.md", "The difference engine adds.")
    assert [passage.source for passage in knowledge.search(ADA, "the difference engine adds", limit=1)] == ["more.md"]
    assert knowledge.take_notices() == other.take_notices() == []


OFFLINE = """
import os, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
exec(sys.stdin.read())
assert knowledge.search(sys.argv[2], "the difference engine", limit=1)
assert knowledge.take_notices() == []
open_sockets = {os.readlink(f"/proc/self/fd/{fd}")[8:-1] for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")}
internet = {line.split()[9] for kind in ("tcp", "tcp6", "udp", "udp6")
            for line in open(f"/proc/self/net/{kind}").readlines()[1:]}
print(sorted(open_sockets & internet))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/net"), reason="open sockets are read from Linux's /proc")
def test_adding_and_searching_opens_no_connection(home: Home) -> None:
    program = HOLDER.replace("sys.stdin.readline()", "")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(home.root), ADA], input=program, capture_output=True, text=True, check=False
    )
    assert done.stdout == "ready\n[]\n", done.stderr


# Embedders


def test_what_was_added_by_words_alone_gets_its_vectors_later(home: Home) -> None:
    loading = LazyEmbedder("hashing")
    knowledge = Knowledge(home, loading, SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    assert places(knowledge.search(ADA, "Who taught her mathematics?", limit=1)) == ["Family"]
    assert knowledge.embed_missing(ADA) == 0
    assert "no vector" in knowledge.check()[0]
    loading.wait()
    assert knowledge.embed_missing(ADA) == 3
    assert knowledge.embed_missing(ADA) == 0
    assert knowledge.check() == []
    assert "meaning" in knowledge.search(ADA, "Who taught her mathematics?", limit=1)[0].reason
    knowledge.close()


def test_an_embedder_that_cannot_be_loaded_leaves_words(home: Home, tmp_path: Path) -> None:
    knowledge = Knowledge(home, LazyEmbedder(str(tmp_path / "no-model")), SETTINGS)
    (tmp_path / "notes.md").write_text(NOTES)
    assert knowledge.add(ADA, tmp_path / "notes.md").passages == 3
    assert "words alone" in knowledge.take_notices()[0]
    assert places(knowledge.search(ADA, "Who taught her mathematics?", limit=1)) == ["Family"]
    with pytest.raises(RplaError, match="There is no embedder"):
        knowledge.reindex()
    knowledge.close()


def test_another_embedder_is_told_and_reindexing_makes_its_vectors(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge = Knowledge(home, hashing(), SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    other = hashing()

    class Wider:
        name = "wider-8"

        def __call__(self, texts: object) -> np.ndarray:
            assert isinstance(texts, list)
            return np.full((len(texts), 8), 8**-0.5, dtype=np.float32)

    monkeypatch.setattr(other, "_loaded", Wider())
    knowledge.close()
    knowledge = Knowledge(home, other, SETTINGS)
    assert places(knowledge.search(ADA, "Who taught her mathematics?", limit=1)) == ["Family"]
    (notice,) = knowledge.take_notices()
    assert "hashing-256" in notice
    assert "reindex" in notice
    assert "hashing-256" in knowledge.check()[0]
    assert knowledge.reindex() == 3
    assert knowledge.check() == []
    assert knowledge.search(ADA, "Who taught her mathematics?", limit=1)[0].reason.endswith("meaning 1.00")
    assert knowledge.take_notices() == []
    knowledge.close()


@pytest.mark.parametrize("package", ["llama_index", "chromadb", "pypdf"])
def test_a_missing_package_is_told_with_what_to_install(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    knowledge = Knowledge(home, hashing(), SETTINGS)
    if package == "chromadb":
        knowledge.add_text(ADA, "notes.md", NOTES)
        assert places(knowledge.search(ADA, "Who taught her mathematics?", limit=1)) == ["Family"]
        assert "not installed" in knowledge.take_notices()[0]
    else:
        (tmp_path / "a.txt").write_bytes(b"%PDF-1.4" if package == "pypdf" else b"text")
        with pytest.raises(MissingExtra, match=r"rpla\[local\]"):
            knowledge.add(ADA, tmp_path / "a.txt")
        assert knowledge.sources(ADA) == []
    knowledge.close()


# Durable, and gone when erased


def test_a_file_is_added_whole_or_not_at_all(
    knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    file = novel(tmp_path)
    monkeypatch.setattr(PassageStore, "_stamp", fail)
    with pytest.raises(KeyboardInterrupt):
        knowledge.add(ADA, file)
    monkeypatch.undo()
    assert knowledge.sources(ADA) == []
    assert knowledge.search(ADA, "the murder", limit=1) == []
    assert knowledge.add(ADA, file).added == ("novel.txt",)


def test_a_damaged_store_says_so_and_what_to_do(home: Home, tmp_path: Path) -> None:
    knowledge = Knowledge(home, None, SETTINGS)
    knowledge.add(ADA, novel(tmp_path))
    knowledge._store._database.checkpoint()
    knowledge.close()
    content = bytearray(home.knowledge.read_bytes())
    place = content.index(b"Paragraph 30.") // 4096 * 4096
    content[place : place + 4096] = b"\xff" * 4096
    home.knowledge.write_bytes(content)
    knowledge = Knowledge(home, None, SETTINGS)
    with pytest.raises(RplaError, match="is damaged") as raised:
        knowledge.search(ADA, "the murder", limit=3)
    assert "knowledge add" in raised.value.hint
    knowledge.close()
    home.knowledge.write_bytes(b"not a database at all " * 300)
    with pytest.raises(RplaError, match=r"damaged|not a store"):
        Knowledge(home, None, SETTINGS)


def test_erasing_a_character_leaves_nothing_of_it_in_the_home(knowledge: Knowledge, home: Home, tmp_path: Path) -> None:
    knowledge.add_text(HOLMES, "notes.md", "Toby is a mongrel with a splendid nose.")
    knowledge.add(ADA, novel(tmp_path, 200), story=True)
    knowledge.add_text(ADA, "secret.md", "The xylograph is under the floor.")
    knowledge.set_cutoff(ADA, 0.5)
    knowledge.search(ADA, "xylograph", limit=1)
    store = PassageStore(home.knowledge)
    nums, _, vectors = store.vectors(ADA, "hashing-256")
    store.close()
    knowledge.remove(ADA, "secret.md")
    knowledge.erase(ADA)
    kept = b"".join(file.read_bytes() for file in home.root.rglob("*") if file.is_file())
    for words in (b"xylograph", b"secret.md", b"murder", b"novel.txt", bytes.fromhex(ADA), ADA.encode()):
        assert words not in kept, words
    assert nums
    for number, vector in enumerate(vectors):
        holding = [
            str(f) for f in home.root.rglob("*") if f.is_file() and vector.astype("<f4").tobytes() in f.read_bytes()
        ]
        assert holding == [], (number, len(vectors))
    assert knowledge.sources(ADA) == []
    assert knowledge.cutoff(ADA) is None
    assert knowledge.search(ADA, "the murder", limit=1) == []
    assert len(knowledge.search(HOLMES, "Toby the mongrel", limit=1)) == 1
    assert knowledge.take_notices() == []
    assert knowledge.check() == []


# In a turn


def moment(*texts: str) -> Moment:
    turns: list[Turn] = []
    for number, text in enumerate(texts):
        role = "character" if number % 2 else "user"
        turns.append(Turn(id=new_id(), chat=new_id(), parent=None, role=role, text=text, created=0.0, meta={}))  # type: ignore[arg-type]
    return Moment(turns=turns)


def count_words(text: str) -> int:
    return len(text.split())


async def test_what_is_found_becomes_a_section_that_names_its_sources(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    recaller = PassageRecaller(knowledge, ADA, "Ada Lovelace", count_words, SETTINGS)
    (section,) = await recaller(moment("What patterns does your Analytical Engine weave?"))
    assert (section.name, section.source) == ("knowledge", "knowledge: notes.md")
    assert "The Analytical Engine weaves algebraical patterns" in section.text
    assert "(notes.md, Engines)" in section.text
    assert section.tokens >= count_words(section.text)
    item = section.items[0]
    found = knowledge.passage(item.id)
    assert found is not None
    assert found.place == "Engines"
    assert item.score > 0
    assert "weaves" not in repr(section.items)
    assert await recaller(moment("Hello!")) == []


async def test_a_section_keeps_to_its_tokens(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    for tokens in (0, 5, 30, 60):
        settings = KnowledgeSettings(tokens=tokens)
        recaller = PassageRecaller(knowledge, ADA, "Ada Lovelace", count_words, settings)
        for section in await recaller(moment("Her mother taught mathematics, she rides, the Engine weaves patterns.")):
            assert count_words(section.text) <= section.tokens <= tokens


async def test_a_short_message_is_looked_up_with_what_it_answers(knowledge: Knowledge) -> None:
    knowledge.add_text(ADA, "notes.md", NOTES)
    recaller = PassageRecaller(knowledge, ADA, "Ada Lovelace", count_words, SETTINGS)
    (section,) = await recaller(moment("Good day.", "I was riding this morning, and bets were made.", "And then?"))
    assert "at the races" in section.text


async def test_until_the_embedder_is_there_the_section_says_so(home: Home) -> None:
    knowledge = Knowledge(home, LazyEmbedder("hashing"), SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    (section,) = await PassageRecaller(knowledge, ADA, "Ada", count_words, SETTINGS)(moment("the Analytical Engine"))
    assert "by words alone: the embedder is loading" in section.source
    knowledge.close()


async def test_given_passages_stand_as_they_are() -> None:
    (section,) = await GivenRecaller(["She was born in 1815."], "Ada", count_words, SETTINGS)(moment("Hello!"))
    assert section.name == "knowledge"
    assert "She was born in 1815." in section.text
    assert [(item.id, item.reason) for item in section.items] == [("given-1", "given")]
    assert await GivenRecaller([], "Ada", count_words, SETTINGS)(moment("Hello!")) == []


# At the command line


def rpla(*arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"RPLA_MEMORY__EMBEDDER": "hashing"}
    return subprocess.run(
        [sys.executable, "-m", "rpla", "knowledge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_commands_add_list_search_cut_off_remove_and_reindex(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    novel(docs)
    (docs / "evil.md").write_text("# \x1b]52;c;aGk=\x07Loom\n\nThe loom\x1b[2J weaves \u202eflowers.")
    added = rpla("add", "ada-lovelace", docs, "--story", "--json")
    assert added.returncode == 0, added.stderr
    (report,) = json.loads(added.stdout).values()
    assert sorted(report["added"]) == ["evil.md", "novel.txt"]
    listed = json.loads(rpla("list", "ada-lovelace", "--json").stdout)
    assert [(source["name"], source["story"]) for source in listed["sources"]] == [
        ("evil.md", True),
        ("novel.txt", True),
    ]
    shown = rpla("search", "ada-lovelace", "the", "loom", "weaves", "flowers")
    assert "The loom weaves flowers." in shown.stdout
    assert not any(mark in shown.stdout for mark in "\x1b\x07\u202e")
    assert rpla("cutoff", "ada-lovelace", "0.4").stdout == "0.4\n"
    found = json.loads(rpla("search", "ada-lovelace", "nobody knew of any murder", "--limit", 20, "--json").stdout)
    assert found
    assert all(passage["story_time"] <= 0.4 for passage in found)
    assert rpla("cutoff", "ada-lovelace", "none").stdout == "none\n"
    gone = rpla("remove", "ada-lovelace", "evil.md")
    assert gone.returncode == 0, gone.stderr
    done = rpla("reindex", "ada-lovelace")
    assert (done.returncode, done.stderr) == (0, "Made 0 vectors, and the index anew.\n")


def test_a_bad_path_at_the_command_line_is_told_in_two_lines(tmp_path: Path) -> None:
    done = rpla("add", "ada-lovelace", tmp_path / "none.txt")
    assert done.returncode == 1
    assert "is not there" in done.stderr
    assert "Traceback" not in done.stderr


# The real embedder


@pytest.fixture(scope="module")
def minilm() -> LazyEmbedder:
    embedder = LazyEmbedder("minilm")
    embedder.wait()
    return embedder


@pytest.mark.local
def test_meaning_finds_what_words_do_not(minilm: LazyEmbedder, home: Home) -> None:
    knowledge = Knowledge(home, minilm, KnowledgeSettings())
    knowledge.add_text(ADA, "notes.md", NOTES)
    assert places(knowledge.search(ADA, "Are you fond of gambling on thoroughbreds?", limit=1)) == ["Horses"]
    assert knowledge.search(ADA, "Which smartphone should I buy?", limit=1, about="Ada Lovelace") == []
    assert knowledge.search(ADA, "lol ok", limit=1, about="Ada Lovelace") == []
    assert knowledge.take_notices() == []
    assert knowledge.check() == []
    knowledge.close()


@pytest.mark.local
def test_passages_are_counted_in_the_embedder_s_own_tokens(minilm: LazyEmbedder, home: Home, tmp_path: Path) -> None:
    knowledge = Knowledge(home, minilm, KnowledgeSettings(chunk_tokens=64))
    (tmp_path / "long.txt").write_text(
        "Supercalifragilistic antidisestablishmentarianism! " * 40 + "解析機関は花を織る。" * 60 + "x" * 3000
    )
    knowledge.add(ADA, tmp_path / "long.txt")
    store = PassageStore(home.knowledge)
    pieces = store.pieces_of(knowledge.sources(ADA)[0].id)
    store.close()
    count = splitting._tokenizer("minilm")
    assert len(pieces) > 10
    assert max(len(count(piece.text)) for piece in pieces) <= 64
    knowledge.close()


def test_the_lock_is_let_go_when_it_is_closed(home: Home) -> None:
    knowledge = Knowledge(home, hashing(), SETTINGS)
    knowledge.add_text(ADA, "notes.md", NOTES)
    knowledge.close()
    apart = chroma.ChromaIndex(home.chroma)
    assert apart.fault(ADA, "x", "hashing-256", 3).startswith("Chroma is out of step")
    apart.close()
