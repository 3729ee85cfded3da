"""A character ready to talk with one user: what an app embeds."""

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from langchain_core.language_models import BaseChatModel

from rpla.chat import Chat
from rpla.core.alignment import Alignment, find_alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatInfo, ChatLog, Hit, Turn
from rpla.core.errors import RplaError
from rpla.core.events import TurnCommitted, TurnEvent
from rpla.core.home import Home, find_home
from rpla.core.ids import id_of
from rpla.core.library import CharacterLibrary
from rpla.core.loop import iterate_sync, run_sync
from rpla.core.models.base import Usage
from rpla.core.models.open import open_model
from rpla.core.nearest import nearest_hint
from rpla.core.prompt import Section
from rpla.core.settings import Settings, load_settings
from rpla.core.snapshot import snapshot_due, take_snapshot
from rpla.core.transcript import Names, export_json, export_markdown, export_sillytavern
from rpla.memory.embedder import lazy_embedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.knowledge import Knowledge
from rpla.memory.memories import Memory, Recalled
from rpla.memory.passages import Passage
from rpla.memory.store import MemoryStore
from rpla.mind import Mind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the character said."""

    text: str
    turn: Turn
    sections: tuple[Section, ...]
    """What the prompt was made of."""
    usage: Usage | None

    def __str__(self) -> str:
        return self.text


class Agent:
    """One character for one user. Chats of different users and characters never meet.

    `say` and `stream` are for synchronous code, `asay` and `astream` for asynchronous; do not mix the two on one agent.
    The open chat is in `chat`: the latest one of this user and character, or a new one.
    """

    def __init__(
        self,
        character: str | Character,
        *,
        user: str | None = None,
        persona: Persona | None = None,
        model: str | BaseChatModel | None = None,
        alignment: str | Alignment | None = None,
        home: str | Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        """What is not given comes from the settings.

        Raises RplaError for an unknown character, model or alignment, with the nearest names.
        """
        self.home = Home(Path(home).absolute()) if home is not None else find_home()
        self.settings = settings or load_settings(self.home)
        self.character = CharacterLibrary(self.home).find(character) if isinstance(character, str) else character
        if user is not None and not user.strip():
            raise RplaError("A user needs a name.", "Leave `user` out for the one of the settings.")
        self.user = user or self.settings.user
        self.persona = persona or Persona(**self.settings.persona.model_dump())
        chosen = alignment or self.settings.chat.alignment
        self.alignment = find_alignment(chosen) if isinstance(chosen, str) else chosen
        asked = model or self.settings.model
        self.model = (
            open_model(asked, self.settings, self.home, adapter=self.alignment.adapter)
            if isinstance(asked, str)
            else asked
        )
        self._log = ChatLog(self.home.chats)
        if not self._log.empty and snapshot_due(self.home, time.time()):
            try:
                take_snapshot(self._log, self.home)
            except RplaError as error:
                # A disk without room for a copy is no reason not to talk.
                _log.warning("No snapshot of the chats was taken. %s", error)
        self.mind = self._open_mind()
        """What the character remembers of this user, and what it can look up."""
        self._chat: Chat | None = None

    @property
    def chat(self) -> Chat:
        """The open chat."""
        if self._chat is None:
            latest = next(iter(self.chats()), None)
            self._chat = self._opened(latest) if latest else self.new_chat()
        return self._chat

    def chats(self, *, deleted: bool = False) -> list[ChatInfo]:
        """This user's chats with this character, the most recently used first."""
        return self._log.chats(user=self._user_id, character=self.character.id, deleted=deleted)

    def new_chat(self, *, greeting: int | None = 0) -> Chat:
        """Begin a chat with the character's greeting of that number; None begins in silence."""
        info = self._log.create_chat(user=self._user_id, character=self.character.id)
        self._chat = self._opened(info)
        if greeting is not None:
            self._chat.greet(greeting)
        return self._chat

    def open_chat(self, id: str) -> Chat:
        """Open one of this user's chats with this character. Raises RplaError for any other."""
        info = self._log.chat(id)
        if (info.user, info.character) != (self._user_id, self.character.id):
            raise RplaError(f"Chat {id} is not one of {self.user} with {self.character.name}.")
        self._chat = self._opened(info)
        return self._chat

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return getattr(self.model, "name_string", None) or type(self.model).__name__

    def set_model(self, name: str) -> None:
        """Talk on with another model, in the open chat and those opened from now on."""
        self.model = open_model(name, self.settings, self.home, adapter=self.alignment.adapter)
        self.chat.set_model(self.model)

    def set_persona(self, persona: Persona) -> None:
        """Say who the user is, in the open chat and those opened from now on."""
        self.persona = persona
        self.chat.set_persona(persona)

    def export_chat(self, format: str) -> str:
        """The open chat as ``md``, ``json`` or ``sillytavern`` (JSONL). Raises RplaError for any other format."""
        writers = {"md": export_markdown, "json": export_json, "sillytavern": export_sillytavern}
        if format not in writers:
            raise RplaError(f"Unknown format {format!r}.", nearest_hint(format, writers))
        names = Names(user=self.persona.name, character=self.character.spoken_name)
        return writers[format](self.chat.info, self._log.turns(self.chat.id), names)

    def search(self, words: str, *, limit: int = 20) -> list[Hit]:
        """Turns of this user's chats with this character that hold all the words."""
        return self._log.search(words, user=self._user_id, character=self.character.id, limit=limit)

    def memories(self, words: str = "") -> list[Recalled]:
        """What the character can recall in the open chat, the best first; without words all of it, the newest first."""
        return self.chat.memories(words)

    def remember(self, text: str) -> Memory:
        """Have the character remember something, from the open chat's last turn on."""
        return self.chat.note(text)

    def forget(self, ids: Iterable[str]) -> list[str]:
        """Take memories of this user away for good, with the insights that stood on them; the ids that are gone.

        Raises RplaError where one is not there; then none is taken.
        """
        return self.mind.require_memory().forget(ids)

    def texts_of(self, section: Section) -> dict[str, str]:
        """What memories or passages of a section say now, by their ids; without those that are gone since."""
        ids, memory, knowledge = [item.id for item in section.items], self.mind.memory, self.mind.knowledge
        if section.name == "memories" and memory is not None:
            own = (self._user_id, self.character.id)
            return {one.id: one.text for one in memory.store.find(ids) if (one.user, one.character) == own}
        if section.name == "knowledge" and knowledge is not None:
            found = {id: knowledge.passage(id) for id in ids}
            return {id: passage.text for id, passage in found.items() if passage is not None}
        return {}

    def say(self, text: str, given: Sequence[Passage | str] = ()) -> Reply:
        """Say something and wait for the answer; `given` are passages to answer from, where the alignment takes any."""
        return run_sync(self.asay(text, given))

    async def asay(self, text: str, given: Sequence[Passage | str] = ()) -> Reply:
        """Say something and await the answer."""
        async for event in self.chat.stream(text, given):
            if isinstance(event, TurnCommitted):
                committed = event
        return Reply(
            text=committed.turn.text, turn=committed.turn, sections=tuple(committed.sections), usage=committed.usage
        )

    def stream(self, text: str) -> Iterator[TurnEvent]:
        """Say something and iterate over what happens; leaving the loop stops the model."""
        return iterate_sync(self.astream(text))

    def astream(self, text: str) -> AsyncGenerator[TurnEvent, None]:
        """Say something and iterate asynchronously over what happens; closing the iterator stops the model."""
        return self.chat.stream(text)

    def finish(self) -> None:
        """Wait for work in the background: remembering, summaries, reflection. What is not waited for is done at the
        next start.
        """
        if self._chat is not None:
            run_sync(self._chat.settled())

    def close(self) -> None:
        """Close the chat log and the memory. Work in the background that is cut off is done at the next start."""
        if self._chat is not None:
            self._chat.close()
        self._log.close()
        self.mind.close()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _user_id(self) -> str:
        return id_of("user", self.user)

    def _opened(self, info: ChatInfo) -> Chat:
        if self._chat is not None:
            self._chat.close()  # what it was doing is done when it is opened again
        return Chat(
            self._log,
            info,
            character=self.character,
            persona=self.persona,
            model=self.model,
            alignment=self.alignment,
            settings=self.settings,
            mind=self.mind,
        )

    def _open_mind(self) -> Mind:
        embedder = lazy_embedder(self.settings.memory.embedder)
        memory = knowledge = None
        notes = ""
        if self.alignment.memory:
            memory = EpisodicMemory(
                MemoryStore(self.home.memory),
                self._log,
                user=self._user_id,
                character=self.character.id,
                embedder=embedder,
                settings=self.settings.memory,
            )
        if self.alignment.knowledge == "retrieved":
            knowledge = Knowledge(self.home, embedder, self.settings.knowledge)
            if self.character.bundled:
                notes = CharacterLibrary(self.home).notes(self.character)
        return Mind(self.character, self.alignment, self.settings, memory=memory, knowledge=knowledge, notes=notes)
