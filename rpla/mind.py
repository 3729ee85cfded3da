"""What a character brings to a conversation beside its card: what it remembers, and what it can look up."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from langchain_core.language_models import BaseChatModel

from rpla.core.alignment import Alignment
from rpla.core.character import Character
from rpla.core.chatlog import ChatLog, Turn
from rpla.core.errors import MissingExtra, RplaError
from rpla.core.history import History
from rpla.core.macros import Macros
from rpla.core.models.base import Options
from rpla.core.models.stream import count_tokens_with
from rpla.core.prompt import message_of
from rpla.core.settings import Settings
from rpla.graphs.reflect import due, reflect
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.importance import rate
from rpla.memory.knowledge import Knowledge
from rpla.memory.looking_up import PassageRecaller
from rpla.memory.lore import LoreRecaller
from rpla.memory.memories import Memory
from rpla.memory.recall import Recaller
from rpla.memory.remember import remember
from rpla.memory.remembering import MemoryRecaller, viewpoint_at
from rpla.memory.summaries import due_summary, keep_summary, summaries_on, summarize

_MEMORIES_SHARE, _PASSAGES_SHARE = 10, 6
"""Of a small context's room, memories and passages take no more than one part in so many."""
_NOTES = "notes.md"

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class Mind:
    """One character's for one user; chats share it."""

    def __init__(
        self,
        character: Character,
        alignment: Alignment,
        settings: Settings,
        *,
        memory: EpisodicMemory | None = None,
        knowledge: Knowledge | None = None,
        notes: str = "",
    ) -> None:
        """Without memory nothing is remembered, without knowledge nothing looked up; `notes` come with a character."""
        self.memory, self.knowledge = memory, knowledge
        self._character, self._alignment, self._settings, self._notes = character, alignment, settings, notes
        self._caught_up = self._learnt = False
        # One thread of its own: work that takes long must not keep the threads busy that turns are saved by.
        self._hands = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rpla-mind")
        self._stop = threading.Event()

    def room(self, room: int) -> int:
        """Tokens that memories and passages may take, of a context with so much room."""
        return self._memories_room(room) + self._passages_room(room)

    def recallers(self, macros: Macros, count_tokens: Callable[[str], int], room: int) -> list[Recaller]:
        """The sources of what comes to mind in one chat."""
        character, settings = self._character, self._settings
        recallers: list[Recaller] = []
        if self._alignment.lore and character.lore.entries:
            recallers.append(LoreRecaller(character.lore, macros, count_tokens))
        if self.knowledge is not None and (tokens := self._passages_room(room)):
            asked = settings.knowledge.model_copy(update={"tokens": tokens})
            recallers.append(PassageRecaller(self.knowledge, character.id, macros.char, count_tokens, asked))
        if self.memory is not None and (tokens := self._memories_room(room)):
            budget = settings.memory.model_copy(update={"tokens": tokens})
            recallers.append(
                MemoryRecaller(self.memory, macros, count_tokens, budget, insights=self._alignment.reflection)
            )
        return recallers

    def history(self, room: int, branch: Sequence[Turn], count_tokens: Callable[[str], int]) -> History:
        """The part of a branch that is in the prompt, with a summary of what is not."""
        summaries = summaries_on(self.memory.store, branch) if self.memory is not None else ()
        return History.load(room, [message_of(turn) for turn in branch], count_tokens, summaries)

    def resume(self) -> None:
        """Let work in the background begin."""
        self._stop.clear()

    def pause(self) -> None:
        """Have work in the background end at the next turn, or the next few vectors."""
        self._stop.set()

    async def learn_notes(self) -> None:
        """Take in the notes that come with the character, and make vectors that are missing."""
        if self.knowledge is not None and not self._learnt and self._notes.strip():
            await self._aside(self._learn, self.knowledge)

    def _learn(self, knowledge: Knowledge) -> None:
        if self._stop.is_set():
            return
        try:
            knowledge.add_text(self._character.id, _NOTES, self._notes)
            if knowledge.embedder is None or knowledge.embedder.ready is not None:
                knowledge.embed_missing(self._character.id)
                self._learnt = True
        except MissingExtra as error:
            _log.info("%s", error)
            self._learnt = True

    async def remember(self, log: ChatLog, chat: str, model: BaseChatModel, options: Options) -> None:
        """Go through what was said since the last time, in this chat and in those that were cut off."""
        if self.memory is None or not self._settings.memory.remember:
            return
        kept = await self._aside(self._remember, self.memory, log, chat)
        if self._settings.memory.importance_by == "model":
            await rate(self.memory, model, kept, options)

    async def sum_up(
        self, history: History, branch: Sequence[Turn], model: BaseChatModel, options: Options, macros: Macros
    ) -> None:
        """Sum up what leaves the window next, once that is near."""
        if self.memory is None or not self._settings.memory.summarize:
            return
        plan = due_summary(history, branch)
        if plan is None:
            return
        summary = await summarize(plan, model, options, character=macros.char, user=macros.user)
        if summary is not None:
            await asyncio.to_thread(keep_summary, self.memory.store, summary)
            history.prepare(summary, lambda text: count_tokens_with(model, text))

    async def reflect(
        self, chat: str, branch: Sequence[Turn], model: BaseChatModel, options: Options, macros: Macros
    ) -> None:
        """Draw conclusions, once enough has gathered."""
        threshold = self._settings.memory.reflect_after
        if self.memory is not None and self._alignment.reflection and due(self.memory, threshold):
            await reflect(
                self.memory,
                model,
                viewpoint_at(chat, branch),
                character=macros.char,
                user=macros.user,
                options=options,
                threshold=threshold,
            )

    async def leave(self, log: ChatLog, chat: str) -> None:
        """Remember what can be remembered at once; where the embedder is still loading, the next start does it."""
        self.pause()
        if self.memory is not None and self._settings.memory.remember and not self.memory.embedder_missing:
            await self._aside(remember, self.memory, log, chat)

    def close(self) -> None:
        """Close the files; work in the background ends at the next turn."""
        self.pause()
        self._hands.shutdown(wait=False, cancel_futures=True)
        if self.memory is not None:
            self.memory.store.close()
        if self.knowledge is not None:
            self.knowledge.close()

    def require_memory(self) -> EpisodicMemory:
        """The memory. Raises RplaError where the alignment has none."""
        if self.memory is None:
            raise RplaError(
                f"The alignment {self._alignment.name} has no memory.",
                "Choose one that has: rpla chat --alignment full",
            )
        return self.memory

    def _remember(self, memory: EpisodicMemory, log: ChatLog, chat: str) -> list[Memory]:
        if self._stop.is_set():
            return []
        memory.load_embedder(self._stop)
        if self._stop.is_set():
            return []
        if self._caught_up:
            return remember(memory, log, chat, self._stop)
        memory.all()  # the index is made here, and not when the user waits
        memory.embed_missing(self._stop)
        kept: list[Memory] = []
        for info in log.chats(user=memory.user, character=memory.character):
            kept += remember(memory, log, info.id, self._stop)
        self._caught_up = not self._stop.is_set()
        return kept

    async def _aside(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._hands, partial(work, *arguments, **named))

    def _memories_room(self, room: int) -> int:
        return min(self._settings.memory.tokens, room // _MEMORIES_SHARE) if self.memory is not None else 0

    def _passages_room(self, room: int) -> int:
        if self.knowledge is None:
            return 0
        return min(self._settings.knowledge.tokens, room // _PASSAGES_SHARE)
