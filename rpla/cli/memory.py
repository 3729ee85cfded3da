"""`rpla memory`: what characters remember of you, to look at, to change, to forget and to erase."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpla.cli.output import date, excerpt, print_json, print_table, say

if TYPE_CHECKING:
    from rpla.core.chatlog import ChatLog, Turn
    from rpla.core.home import Home
    from rpla.erase import Plan
    from rpla.memory.memories import Memory

app = typer.Typer(help="Look at what characters remember of you, and change it.", no_args_is_help=True)

Character = Annotated[str, typer.Argument(metavar="CHARACTER", help="Whose memory; `rpla characters list` shows them.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A memory's id, or how it begins (at least 4 digits).")]
User = Annotated[str | None, typer.Option(help="Of whom; the user of the settings where not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Text = Annotated[list[str], typer.Argument(metavar="TEXT")]

_SHORTEST_PREFIX = 4
_CANDIDATES = 5


@app.command("list")
def list_memories(
    character: Character,
    user: User = None,
    limit: Annotated[int, typer.Option(min=1, help="Most memories to show.")] = 1000,
    as_json: Json = False,
) -> None:
    """List what a character remembers of you, the newest first; from all chats and branches."""
    with _Mind(character, user) as mind:
        memories = mind.memory.all()[::-1][:limit]
        if as_json:
            print_json([mind.facts(memory) for memory in memories])
            return
        rows = [
            (one.id[:8], one.kind, date(one.created), f"{one.importance:.2f}", ", ".join(mind.marks(one)), _line(one))
            for one in memories
        ]
        print_table(("memory", "kind", "when", "matters", "marks", "text"), rows)


@app.command()
def search(
    character: Character,
    words: Annotated[list[str], typer.Argument(metavar="WORDS")],
    user: User = None,
    limit: Annotated[int, typer.Option(min=1, help="Most memories to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Search what a character remembers, with scores and reasons; from all chats and branches."""
    with _Mind(character, user) as mind:
        mind.memory.load_embedder()
        found = sorted(mind.memory.recall(" ".join(words), None, limit=limit), key=lambda one: -one.score)
        if as_json:
            print_json(
                [{**mind.facts(one.memory), "score": round(one.score, 3), "reason": one.reason} for one in found]
            )
            return
        if not found:
            say("Nothing was found.")
            return
        rows = [
            (one.memory.id[:8], f"{one.score:.2f}", one.reason, ", ".join(mind.marks(one.memory)), _line(one.memory))
            for one in found
        ]
        print_table(("memory", "score", "why", "marks", "text"), rows)


@app.command()
def show(character: Character, id: Id, user: User = None, as_json: Json = False) -> None:
    """Show all of one memory: the turn it comes from, and what it stands on."""
    from rpla.core.terminal import terminal_safe

    with _Mind(character, user) as mind:
        memory = mind.find(id)
        turn, evidence = mind.turn(memory), mind.memory.store.find(memory.evidence)
        insights = mind.memory.store.standing_on([memory.id])
        if as_json:
            more: dict[str, Any] = {
                "said": None if turn is None else {"role": turn.role, "text": turn.text, "created": turn.created},
                "evidence": [mind.facts(one) for one in evidence],
                "insights": [mind.facts(one) for one in insights],
            }
            print_json({**mind.facts(memory), **more})
            return
        print(terminal_safe(memory.text) + "\n")
        facts: list[tuple[str, object]] = [
            ("id", memory.id),
            ("kind", f"{memory.kind}, {memory.provenance}"),
            ("when", date(memory.created)),
            ("said again", f"{date(memory.renewed)}, {memory.mentions} times in all" if memory.mentions > 1 else ""),
            ("matters", f"{memory.importance:.2f}"),
            ("marks", ", ".join(mind.marks(memory))),
            ("in place of it", memory.superseded_by or ""),
            ("story time", "" if memory.story_time is None else memory.story_time),
            ("chat", memory.chat or ""),
            ("turn", memory.turn or ""),
            ("said as", f"{turn.role}: {excerpt(turn.text, 300)}" if turn is not None else ""),
            ("after", excerpt(memory.context, 300)),
            *(("stands on", f"{one.id[:8]} {excerpt(one.text)}") for one in evidence),
            *(("holds up", f"{one.id[:8]} {excerpt(one.text)}") for one in insights),
        ]
        for name, value in facts:
            if value != "":
                print(terminal_safe(f"{name:15}{value}").replace("\n", " "))


@app.command()
def pin(character: Character, id: Id, user: User = None) -> None:
    """Have a memory always come to mind."""
    with _Mind(character, user) as mind:
        memory = mind.memory.change(mind.find(id).id, pinned=True)
        say(f"Pinned {memory.id[:8]}: {_line(memory)}")


@app.command()
def unpin(character: Character, id: Id, user: User = None) -> None:
    """Have a memory come to mind when it fits, as others do."""
    with _Mind(character, user) as mind:
        memory = mind.memory.change(mind.find(id).id, pinned=False)
        say(f"Unpinned {memory.id[:8]}: {_line(memory)}")


@app.command()
def edit(character: Character, id: Id, text: Text, user: User = None) -> None:
    """Put other words in a memory's place. It counts as noted by hand from then on."""
    with _Mind(character, user) as mind:
        memory = mind.find(id)
        noted = memory.provenance if memory.kind == "insight" else "noted"
        mind.memory.change(memory.id, text=" ".join(text).strip(), provenance=noted)
        say(f"{memory.id[:8]} is now: {_line(mind.memory.store.get(memory.id))}")


@app.command()
def note(character: Character, text: Text, user: User = None) -> None:
    """Have a character remember something of you, in every chat."""
    with _Mind(character, user) as mind:
        memory = mind.memory.note(" ".join(text))
        say(f"{mind.name} remembers: {_line(memory)}")
        print(memory.id)


@app.command()
def forget(
    character: Character,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of memories, or how they begin.")],
    user: User = None,
) -> None:
    """Take memories away for good. What was said stays in the chat; `erase` takes that, too."""
    with _Mind(character, user) as mind:
        wanted = {memory.id: memory for memory in map(mind.find, ids)}
        known = {memory.id: memory for memory in mind.memory.all()}
        gone = mind.memory.forget(wanted)
        mind.memory.store.checkpoint()
        for id in gone:
            if id in wanted:
                say(f"Forgot {id[:8]}: {_line(wanted[id])}")
            else:
                say(f"With it fell the insight {id[:8]}, which stood on it: {_line(known[id])}")
        say("This cannot be undone: it is forgotten for good, and not remembered from that chat again.")


@app.command()
def stats(character: Character, user: User = None, as_json: Json = False) -> None:
    """Count what a character remembers of you."""
    with _Mind(character, user) as mind:
        memories = mind.memory.all()
        counts = {
            "memories": len(memories),
            "seen": len(mind.seen),
            **{kind: sum(one.kind == kind for one in memories) for kind in ("episode", "insight")},
            **{
                said: sum(one.provenance == said for one in memories)
                for said in ("told", "said", "hearsay", "noted", "inferred")
            },
            "pinned": sum(one.pinned for one in memories),
            "superseded": sum(one.superseded_by is not None for one in memories),
            "chats": len({one.chat for one in memories if one.chat is not None}),
            "reflected": sum(
                row.num <= mind.memory.store.reflected(mind.memory.user, mind.memory.character)
                for row in mind.memory.store.rows(mind.memory.user, mind.memory.character)
            ),
            "bytes": mind.home.memory.stat().st_size,
        }
        embedders = mind.memory.store.embedders(mind.memory.user, mind.memory.character)
        if as_json:
            print_json({**counts, "vectors": embedders})
            return
        vectors = [(f"vectors of {name}" if name else "without a vector", n) for name, n in embedders.items()]
        print_table(("what", "how many"), [*counts.items(), *vectors])


@app.command()
def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Mend what can be mended; nothing said is lost.")] = False,
    as_json: Json = False,
) -> None:
    """Check all memories of this home. Exits with 1 where something needs to be done."""
    from dataclasses import asdict

    from rpla.core.home import find_home
    from rpla.core.settings import load_settings
    from rpla.memory.doctor import examine_memory, mend_memory

    home = find_home()
    settings = load_settings(home)
    if mend:
        done = mend_memory(home, settings)
        for line in done or ["There is nothing to mend in the memories."]:
            say(line)
    findings = examine_memory(home, settings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [
            ("ok" if one.ok else "NO", one.kind, ", ".join(id[:8] for id in one.ids[:_CANDIDATES]), one.text)
            for one in findings
        ]
        print_table(("", "kind", "memories", "finding"), rows)
        for hint in dict.fromkeys(one.hint for one in findings if one.hint and not one.ok):
            say(hint)
        if any(one.mendable and not one.hint for one in findings):
            say("`rpla memory doctor --mend` mends what is not as it should be.")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def rebuild(character: Character, user: User = None) -> None:
    """Make the vectors of all memories anew, with the embedder of the settings. No memory changes."""
    from rpla.core.errors import RplaError
    from rpla.memory.doctor import embed_rows, loaded_embedder

    with _Mind(character, user) as mind:
        embedder, missing = loaded_embedder(mind.settings.memory)
        if embedder is None:
            raise RplaError(
                missing or "Memories are searched by words alone; there are no vectors to make.",
                "`rpla config set memory.embedder minilm` chooses an embedder.",
            )
        mind.memory.store.drop_vectors(mind.memory.user, mind.memory.character)
        made = embed_rows(mind.memory.store, embedder, mind.memory.user, mind.memory.character)
        say(f"Made {made} vectors with {embedder.name}.")


@app.command()
def erase(
    character: Annotated[str, typer.Argument(metavar="CHARACTER", help="All that was said with it.")] = "",
    turn: Annotated[str, typer.Option(metavar="ID", help="Only this turn, and those that hold the same.")] = "",
    chat: Annotated[str, typer.Option(metavar="ID", help="Only this chat.")] = "",
    user: Annotated[str | None, typer.Option(help="Of whom; without a character, everything of that user.")] = None,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="Of all users, and what the character knows from documents.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Overwrite what was said, wherever it is kept: chats, memories, summaries, snapshots, what you typed."""
    from dataclasses import asdict

    from rpla.core.chatlog import ChatLog
    from rpla.core.database import alone
    from rpla.core.errors import RplaError
    from rpla.core.home import find_home
    from rpla.erase import erase as carry_out

    home = find_home()
    # What another rpla holds in memory it would write anew.
    for file in (home.chats, home.memory, home.knowledge):
        with alone(file):
            pass
    log = ChatLog(home.chats)
    try:
        plan = _planned(home, log, character, turn, chat, user, everyone)
        _describe(log, plan)
        if not yes:
            if not sys.stdin.isatty():
                raise RplaError("Erasing cannot be undone, and nobody can be asked here.", "--yes does it.")
            say("This cannot be undone. Type yes to erase:")
            if input("> ").strip().lower() != "yes":
                say("Nothing was erased.")
                raise typer.Exit(1)
        done = carry_out(home, log, plan)
    finally:
        log.close()
    if as_json:
        print_json(asdict(done))
        return
    say(
        f"Erased {done.turns} turns and {done.chats} chats, {done.memories} memories, {done.summaries} summaries, "
        f"{done.sources} documents, {done.typed} lines that were typed, and {len(done.files)} copies."
    )
    if done.snapshot is not None:
        say(f"A new snapshot was taken: {done.snapshot}")
    say("Files that you exported, and what others answered, are as they were.")


def _planned(
    home: "Home", log: "ChatLog", character: str, turn: str, chat: str, user: str | None, everyone: bool
) -> "Plan":
    from rpla import erase as plans
    from rpla.core.errors import RplaError
    from rpla.core.ids import id_of
    from rpla.core.settings import load_settings

    if (turn and chat) or (everyone and (turn or chat or user or not character)):
        raise RplaError("That is more than one thing to erase.", "One of: a turn, a chat, a character, a user.")
    of_user = id_of("user", user or load_settings(home).user)
    of_character = _character_id(home, character)[0] if character else None
    if turn or chat:
        chats = [
            info for gone in (False, True) for info in log.chats(user=of_user, character=of_character, deleted=gone)
        ]
        if chat:
            titles = {info.id: info.title for info in chats}
            return plans.plan_chat(log, _whole_id(chat, "chat", list(titles), titles.__getitem__))
        turns = {one.id: one for info in chats for one in log.turns(info.id)}
        return plans.plan_turn(log, _whole_id(turn, "turn", list(turns), lambda id: turns[id].text))
    if of_character is not None:
        if everyone:
            return plans.plan_character(home, log, of_character)
        return plans.plan_between(home, log, user=of_user, character=of_character)
    if user is None:
        raise RplaError("Say what to erase.", "CHARACTER, --turn ID, --chat ID, or --user NAME for all of a user.")
    return plans.plan_user(home, log, of_user)


def _describe(log: "ChatLog", plan: "Plan") -> None:
    for turn in plan.turns:
        say(f"{turn.id[:8]} {_by(turn)}: {excerpt(turn.text)}")
    if plan.copies:
        say(f"{plan.copies} of these hold the same as the one you named: edited, said again, or gone on with.")
    for info in plan.chats:
        say(f"{info.id[:8]} of {date(info.created)}, {info.turns} turns: {excerpt(info.title)}")
    if not plan.turns and not plan.chats and not plan.scopes:
        say("Nothing is there; what is left of it in free pages and copies is overwritten.")
    if plan.knowledge is not None:
        say("What the character knows from documents goes, too. Its card stays.")
    if plan.all_typed:
        say("All lines that were typed in the line chat go, too, whoever typed them.")
    say("All snapshots, and damaged files that were set aside, are removed; a new snapshot is taken.")


class _Mind:
    """One character's memory of one user, and the log it comes from."""

    def __init__(self, character: str, user: str | None) -> None:
        from rpla.core.chatlog import ChatLog
        from rpla.core.home import find_home
        from rpla.core.ids import id_of
        from rpla.core.settings import load_settings
        from rpla.memory.embedder import lazy_embedder
        from rpla.memory.episodic import EpisodicMemory
        from rpla.memory.store import MemoryStore

        self.home = find_home()
        self.settings = load_settings(self.home)
        character_id, self.name = _character_id(self.home, character)
        self._log = ChatLog(self.home.chats)
        try:
            store = MemoryStore(self.home.memory)
        except BaseException:
            self._log.close()
            raise
        self.memory = EpisodicMemory(
            store,
            self._log,
            user=id_of("user", user or self.settings.user),
            character=character_id,
            embedder=lazy_embedder(self.settings.memory.embedder),
            # What is marked as unseen is so from every chat.
            settings=self.settings.memory.model_copy(update={"across_chats": True}),
        )
        self._seen: frozenset[str] | None = None

    def __enter__(self) -> "_Mind":
        return self

    def __exit__(self, *error: object) -> None:
        self.memory.store.close()
        self._log.close()

    @property
    def seen(self) -> frozenset[str]:
        """Ids of the memories that the open branch of some chat sees."""
        from rpla.memory.episodic import Viewpoint

        if self._seen is None:
            nowhere = Viewpoint(chat="", turns=frozenset())
            self._seen = frozenset(memory.id for memory in self.memory.all(nowhere))
        return self._seen

    def find(self, id: str) -> "Memory":
        """The memory whose id begins so."""
        memories = {memory.id: memory for memory in self.memory.all()}
        return memories[_whole_id(id, "memory", list(memories), lambda id: memories[id].text)]

    def turn(self, memory: "Memory") -> "Turn | None":
        from rpla.core.errors import RplaError

        try:
            return self._log.turn(memory.turn) if memory.turn is not None else None
        except RplaError:  # the log was restored from a snapshot, say
            return None

    def marks(self, memory: "Memory") -> list[str]:
        marks = ["pinned"] if memory.pinned else []
        if memory.superseded_by is not None:
            marks.append("superseded")
        elif memory.id not in self.seen:
            marks.append("not on an open branch")
        return marks

    def facts(self, memory: "Memory") -> dict[str, Any]:
        from dataclasses import asdict

        return {**asdict(memory), "seen": memory.id in self.seen}


def _character_id(home: "Home", character: str) -> tuple[str, str]:
    """Id and name of a character. One that was removed is known by its whole id."""
    from rpla.core.errors import RplaError
    from rpla.core.library import CharacterLibrary

    library = CharacterLibrary(home)
    try:
        found = library.find(character)
    except RplaError:
        if len(character) == 32 and set(character) <= set("0123456789abcdef"):
            return character, character[:8]
        raise
    return found.id, found.spoken_name


def _whole_id(id: str, noun: str, ids: Sequence[str], text_of: Callable[[str], str]) -> str:
    """The id that begins so; only people shorten ids. Raises RplaError that offers those that may be meant."""
    from rpla.core.errors import RplaError

    wanted = id.strip().lower()
    if len(wanted) < _SHORTEST_PREFIX:
        raise RplaError(f"{id!r} is too short for an id.", f"Give at least {_SHORTEST_PREFIX} digits of it.")
    found = [known for known in ids if known.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        shows = "`rpla memory list` shows them." if noun == "memory" else "`rpla chats list` shows the chats."
        raise RplaError(f"There is no {noun} {id}.", shows)
    longest = max(len(known) for known in found)
    digits = next(n for n in range(len(wanted), longest + 1) if len({known[:n] for known in found}) == len(found))
    shown = "\n".join(f"{known[:digits]}  {excerpt(text_of(known), 60)}" for known in found[:_CANDIDATES])
    more = f"\n… and {len(found) - _CANDIDATES} more" if len(found) > _CANDIDATES else ""
    raise RplaError(f"{len(found)} ids begin with {id}. One of:", shown + more)


def _line(memory: "Memory") -> str:
    return excerpt(memory.text)


def _by(turn: "Turn") -> str:
    return "you" if turn.role == "user" else "the character"
