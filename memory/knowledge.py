"""What characters know by looking it up: documents are added as passages, and the fitting ones are found."""

import math
import os
from pathlib import Path

from rpla.core.database import id_bytes, require_whole
from rpla.core.errors import MissingExtra, RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.settings import KnowledgeSettings
from rpla.memory.adding import Adding, Progress, embed, timed
from rpla.memory.embedder import Embedder, LazyEmbedder
from rpla.memory.finding import CANDIDATES, Match, Words, fits, fused
from rpla.memory.folder import files_under, read_bytes
from rpla.memory.meaning import Meanings
from rpla.memory.passage_store import PassageStore
from rpla.memory.passages import AddReport, Passage, Piece, Source
from rpla.memory.readers import KINDS

_BATCH = 256


class Knowledge:
    """The documents of all characters in one home. Safe to use from several threads and processes at once."""

    def __init__(self, home: Home, embedder: LazyEmbedder | None, settings: KnowledgeSettings) -> None:
        """Without an embedder, or until it is loaded, words alone are searched."""
        self.embedder, self._settings = embedder, settings
        self._store = PassageStore(home.knowledge)
        self._adding = Adding(self._store, embedder, settings.chunk_tokens)
        self._words = Words(self._store)
        self._meanings = Meanings(self._store, home.chroma, embedder)

    def close(self) -> None:
        """Close the files, and let another process have Chroma."""
        self._meanings.close()
        self._store.close()

    def take_notices(self) -> list[str]:
        """What the user should know of how searches went, each said once."""
        return self._meanings.take_notices()

    # Adding

    def add(
        self,
        character: str,
        path: Path,
        *,
        story: bool | None = None,
        story_time: float | None = None,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add a file, or all files under a folder; what has not changed since is left as it is.

        Files that are gone from a folder are removed with it. `story` says that the file is told in order, so that its
        passages carry how far into it they end; `story_time` gives all of them one time. Where neither is given, a
        file keeps what it had. Raises RplaError where the path or a single file cannot be read; nothing of it is kept.
        """
        id_bytes(character)
        path = Path(os.path.abspath(path.expanduser()))
        known = {source.path: source for source in self._store.sources(character)}
        told: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": [], "removed": []}
        failed: list[str] = []
        notes: list[str] = []
        passages = 0
        in_folder = path.is_dir()
        files = files_under(path) if in_folder else [path]
        if in_folder and not files and not any(Path(place).is_relative_to(path) for place in known if place):
            raise RplaError(f"{path} holds no file that is read.", f"These are read: {', '.join(KINDS)}.")
        for number, file in enumerate(files):
            name = str(file.relative_to(path)) if in_folder else file.name
            if progress is not None:
                progress(name, number, len(files))
            before = known.get(str(file))
            source = Source(
                id=id_of("source", f"{character}\0file\0{file}"),
                character=character,
                path=str(file),
                name=before.name if before is not None else name,
                kind=KINDS.get(file.suffix.lower(), "text"),
                hash="",
                in_folder=in_folder or (before is not None and before.in_folder),
            )
            source = timed(source, story, story_time, before)
            try:
                require_whole(str(file))
                outcome, count, note = self._adding.put(source, read_bytes(file), before, progress)
            except RplaError as error:
                if not in_folder or isinstance(error, MissingExtra):
                    raise
                failed.append(error.message)
                continue
            told[outcome].append(source.name)
            passages += count
            notes += [note] if note else []
        if in_folder:
            gone = [
                source
                for place, source in known.items()
                if source.in_folder and Path(place).is_relative_to(path) and not Path(place).exists()
            ]
            if gone:
                self._store.remove(character, [source.id for source in gone])
                told["removed"] = [source.name for source in gone]
        if self._adding.lacking:
            self._meanings.notice(f"Passages are found by words alone: {self._adding.lacking}")
        if told["added"] or told["changed"] or told["removed"]:
            self._meanings.update(character)
        return AddReport(
            added=tuple(told["added"]),
            changed=tuple(told["changed"]),
            unchanged=tuple(told["unchanged"]),
            removed=tuple(told["removed"]),
            failed=tuple(failed),
            notes=tuple(notes),
            passages=passages,
        )

    def add_text(self, character: str, name: str, text: str) -> AddReport:
        """Add a text under a name, in place of the one it had; an empty one takes it out.

        Never waits for the embedder: `embed_missing` makes the vectors later. Raises RplaError where it cannot be read.
        """
        require_whole(name + text)
        id = id_of("source", f"{character}\0text\0{name}")
        before = next((source for source in self._store.sources(character) if source.id == id), None)
        if not text.strip():
            if before is not None:
                self._store.remove(character, [id])
                self._meanings.update(character)
            return AddReport(removed=(name,) if before is not None else ())
        kind = KINDS.get(Path(name).suffix.lower(), "text")
        source = Source(id=id, character=character, path="", name=name, kind=kind, hash="")
        outcome, count, _ = self._adding.put(source, text.encode(), before, None, wait=False)
        if outcome != "unchanged":
            self._meanings.update(character)
        return AddReport(
            added=(name,) if outcome == "added" else (),
            changed=(name,) if outcome == "changed" else (),
            unchanged=(name,) if outcome == "unchanged" else (),
            passages=count,
        )

    def remove(self, character: str, source: str) -> Source:
        """Take a source out, by its name, path or id. Raises RplaError where there is none, or several of the name."""
        sources = self._store.sources(character)
        found = [one for one in sources if source in (one.id, one.path)] or [
            one for one in sources if one.name == source
        ]
        if not found:
            raise RplaError(f"There is no source {source!r}.", "`rpla knowledge list` shows them.")
        if len(found) > 1:
            raise RplaError(f"Several sources are called {source}.", f"Say which: {', '.join(s.path for s in found)}.")
        self._store.remove(character, [found[0].id])
        self._meanings.update(character)
        return found[0]

    def erase(self, character: str) -> None:
        """Remove all of a character's sources, and overwrite them.

        Raises RplaError where another process keeps something of it readable; the rest is erased all the same.
        """
        self._words.forget(character)
        try:
            self._store.erase(character)
        finally:
            self._meanings.rebuild()

    # Looking up

    def search(
        self, character: str, query: str, *, limit: int, cutoff: float | None = None, about: str = ""
    ) -> list[Passage]:
        """The passages that fit best; none where nothing fits. What lies after the cut-off is never among them.

        `cutoff` overrides the character's own; ``math.inf`` tells the whole story. `about` says whom or what the
        question is about where it does not name it ("you"): it helps to rank, and is no reason by itself to find
        anything, since any passage is about the one it is about.
        """
        if limit <= 0 or not (stamp := self._store.stamp(character)):
            return []
        cutoff = self._store.cutoff(character) if cutoff is None else cutoff
        allowed = None if cutoff is None or cutoff == math.inf else self._store.nums(character, cutoff)
        by_words = self._words.search(character, query, about, allowed)
        nearest = self._meanings.search(character, stamp, query, 1 if about else CANDIDATES, cutoff, allowed)
        if not fits(by_words, nearest[0][1] if nearest else -1.0, self._settings.floor):
            return []
        by_meaning = nearest
        if nearest and about:
            by_meaning = self._meanings.search(character, stamp, f"{about}: {query}", CANDIDATES, cutoff, allowed)
        matches = fused(by_words, by_meaning, self._settings.floor)[:limit]
        # Once more, where the truth is: an index may know less than it.
        pieces = self._store.pieces([match.num for match in matches], character, cutoff)
        return [_passage(pieces[match.num], match) for match in matches if match.num in pieces]

    def passage(self, id: str) -> Passage | None:
        """The passage of this id."""
        piece = self._store.piece(id)
        return None if piece is None else _passage(piece, None)

    def sources(self, character: str) -> list[Source]:
        """A character's sources, by name."""
        return self._store.sources(character)

    def cutoff(self, character: str) -> float | None:
        """How far the story is told to a character; None for all of it."""
        return self._store.cutoff(character)

    def set_cutoff(self, character: str, story_time: float | None) -> None:
        """Set how far the story is told to a character; None for all of it."""
        if story_time is not None and not math.isfinite(story_time):
            raise RplaError(f"{story_time} is not a time in a story.", "Give a number, such as 0.5 for half the book.")
        self._store.set_cutoff(character, story_time)

    # Keeping it up

    def embed_missing(self, character: str) -> int:
        """Make the vectors that are not there yet, or are another embedder's; how many were made."""
        embedder = self.embedder.ready if self.embedder is not None else None
        return 0 if embedder is None else self._embed_missing(character, embedder, None)

    def reindex(self, character: str | None = None, progress: Progress | None = None) -> int:
        """Make all missing vectors, and Chroma anew; how many vectors were made.

        Raises RplaError where the embedder cannot be loaded, or another process has Chroma.
        """
        made = 0
        if self.embedder is not None:
            embedder = self.embedder.wait()
            for one in [character] if character else self._store.characters():
                made += self._embed_missing(one, embedder, progress)
        self.rebuild(progress)
        return made

    def rebuild(self, progress: Progress | None = None) -> None:
        """Make Chroma's index anew from the vectors in SQLite. Raises RplaError where another process has it."""
        self._meanings.rebuild(progress)

    def check(self) -> list[str]:
        """What is wrong: with the file, with vectors, with Chroma; empty where nothing is."""
        faults = self._store.faults()
        for character in self._store.characters():
            faults += self._meanings.faults(character)
        return faults

    def _embed_missing(self, character: str, embedder: Embedder, progress: Progress | None) -> int:
        missing = self._store.without_vector(character, embedder.name)
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            vectors = embed(embedder, part, "", None)
            self._store.set_vectors(character, [piece.num for piece in part], vectors, embedder.name)
            if progress is not None:
                progress("passages", start + len(part), len(missing))
        if missing:
            self._meanings.update(character)
        return len(missing)


def _passage(piece: Piece, match: Match | None) -> Passage:
    reasons = []
    if match is not None:
        reasons = [f"words {match.words:.2f}"] if match.words else []
        reasons += [f"meaning {match.meaning:.2f}"] if match.meaning is not None else []
    return Passage(
        id=piece.id,
        source=piece.source,
        place=piece.place,
        text=piece.text,
        score=match.score if match is not None else 0.0,
        story_time=piece.story_time,
        reason=", ".join(reasons),
    )
