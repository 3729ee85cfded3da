"""One conversation of one user with one character: talking, and moving about in the tree of what was said."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache, partial
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph
from langsmith import tracing_context

from rpla.core.alignment import Alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatInfo, ChatLog, Role, Turn
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TextDelta, TurnEvent, TurnReplaced, TurnStarted
from rpla.core.guard import Guard
from rpla.core.history import History
from rpla.core.macros import Macros
from rpla.core.models.base import Options
from rpla.core.models.stream import capabilities_of, context_window_of, count_tokens_with
from rpla.core.prompt import Prompt, PromptBuilder, Section, message_of
from rpla.core.settings import Settings
from rpla.graphs.chat import ChatContext, Draft, build_chat_graph
from rpla.memory.lore import LoreRecaller
from rpla.memory.recall import Moment, Recaller

_CONTINUE = "Go on from the very end of {{char}}'s last words, without repeating them."
_SCANNED_TURNS = 16
"""How many of the newest turns sources of memory may look at."""


class Chat:
    """A branch of the chat's tree is open at any time; its last turn is the head.

    One turn runs at a time: a message sent while another is answered waits for it. Use one event loop per chat.
    """

    def __init__(
        self,
        log: ChatLog,
        info: ChatInfo,
        *,
        character: Character,
        persona: Persona,
        model: BaseChatModel,
        alignment: Alignment,
        settings: Settings,
    ) -> None:
        self.id = info.id
        self.character, self.persona, self.alignment, self.model = character, persona, alignment, model
        self._log, self._info, self._settings = log, info, settings
        self._branch: list[Turn] = log.branch(info.head)
        self._turn_lock = asyncio.Lock()
        self._prefill: asyncio.Task[None] | None = None
        self._builder: PromptBuilder | None = None
        self._history: History | None = None
        self._recallers: Sequence[Recaller] = ()

    # What was said

    @property
    def info(self) -> ChatInfo:
        """Title, dates and counts, as they are now."""
        return self._log.chat(self.id)

    @property
    def turns(self) -> list[Turn]:
        """The open branch, oldest turn first."""
        return list(self._branch)

    @property
    def head(self) -> Turn | None:
        """The last turn of the open branch."""
        return self._branch[-1] if self._branch else None

    def alternatives(self, turn: Turn) -> list[Turn]:
        """The turns that stand in the same place, `turn` included, oldest first."""
        return self._log.children(self.id, turn.parent)

    def branches(self) -> list[Turn]:
        """The last turn of every branch, the newest first."""
        return self._log.leaves(self.id)

    def why(self, turn: Turn | None = None) -> list[Section]:
        """What a reply stood on (the last one where none is given): sections of its prompt with tokens and sources."""
        turn = turn or next((turn for turn in reversed(self._branch) if turn.role == "character"), None)
        sections = (turn.meta.get("sections") if turn else None) or []
        return [Section(name=name, text="", tokens=tokens, source=source) for name, tokens, source in sections]

    # Talking

    async def stream(self, text: str) -> AsyncGenerator[TurnEvent, None]:
        """Say something and stream the answer. Closing the stream early stops the model; what came is kept, marked.

        Raises RplaError where the text is empty, does not fit, cannot be saved, or the model fails. Once `TurnStarted`
        is out, the text is saved: `regenerate` answers it.
        """
        if not text.strip():
            raise RplaError("There is nothing to say.", "Send some text.")
        async with self._turn_lock:
            await self._ready(text)
            asked, elsewhere = await asyncio.to_thread(self._take, text)
            if elsewhere:
                yield Notice("This chat went on elsewhere too; what was said there is on another branch.")
            yield TurnStarted(asked)
            async with contextlib.aclosing(self._reply()) as events:
                async for event in events:
                    yield event

    async def regenerate(self) -> AsyncGenerator[TurnEvent, None]:
        """Answer the user's last message anew, as an alternative beside the reply that is there."""
        async with self._turn_lock:
            asked = next((n for n in reversed(range(len(self._branch))) if self._branch[n].role == "user"), None)
            if asked is None:
                raise RplaError("There is nothing to answer yet.", "Say something first.")
            self._cut(asked + 1)
            await self._ready(self._branch[asked].text)
            yield TurnStarted(None)
            async with contextlib.aclosing(self._reply()) as events:
                async for event in events:
                    yield event

    async def extend(self) -> AsyncGenerator[TurnEvent, None]:
        """Let the character go on with its last reply; the longer one stands beside it."""
        async with self._turn_lock:
            last = self.head
            if last is None or last.role != "character":
                raise RplaError("There is no reply to continue.", "Say something first.")
            await self._ready(last.text)
            yield TurnStarted(None)
            async with contextlib.aclosing(self._reply(begun=last)) as events:
                async for event in events:
                    yield event

    async def warm(self) -> None:
        """Load the model and read what never changes into its cache, so that the first reply comes sooner."""
        async with self._turn_lock:
            if self.alignment.demonstrations != "retrieved" or self._branch[1:]:
                await self._ready("")
                self._start_prefill()

    async def settled(self) -> None:
        """Wait for work in the background, such as prefill."""
        if self._prefill is not None:
            await asyncio.gather(self._prefill, return_exceptions=True)
            self._prefill = None

    # Moving about in the tree

    def greet(self, number: int = 0) -> Turn | None:
        """Open the chat with the character's greeting of that number; None where the card has none."""
        greetings = self.character.greetings
        if not greetings:
            return None
        text = self._macros.expand(greetings[number % len(greetings)])
        for turn in self._log.children(self.id, None):
            if turn.text == text:
                return self._open(turn)
        return self._open(self._log.append(self.id, None, "character", text, meta={"greeting": number}))

    def swipe(self, step: int = 1) -> Turn | None:
        """Put the next (or previous) alternative of the last turn in its place; None where there is no other.

        A greeting is swiped through the card's alternate greetings.
        """
        last = self.head
        if last is None:
            return None
        if last.parent is None and "greeting" in last.meta and len(self.character.greetings) > 1:
            return self.greet(last.meta["greeting"] + step)
        beside = self.alternatives(last)
        if len(beside) < 2:
            return None
        place = [turn.id for turn in beside].index(last.id)
        return self._open(beside[(place + step) % len(beside)])

    def edit(self, turn: Turn, text: str) -> Turn:
        """Put another text in a turn's place; what followed is said after it as before. The old branch stays.

        Returns the edited turn. Raises RplaError where the turn is not on the open branch or the text is empty.
        """
        if not text.strip():
            raise RplaError("An edited turn needs some text.", "To leave a turn out, rewind before it.")
        place = self._place(turn)
        following = self._branch[place + 1 :]
        self._cut(place)
        edited = self._append(turn.role, text, {**_lasting(turn), "edited": turn.id})
        for later in following:
            self._append(later.role, later.text, _lasting(later))
        return edited

    def rewind(self, exchanges: int = 1) -> Turn | None:
        """Go back before the user's last message, or the one `exchanges` before; returns the new head."""
        asked = [n for n, turn in enumerate(self._branch) if turn.role == "user"]
        if not 1 <= exchanges <= len(asked):
            raise RplaError(f"There are {len(asked)} exchanges to go back.", "Rewind by fewer.")
        place = asked[-exchanges]
        return self._open(self._branch[place - 1]) if place else self._open(None)

    def branch(self, turn: Turn) -> Turn:
        """Go on from any turn of the chat; if others follow it already, what comes next begins a new branch."""
        if turn.chat != self.id:
            raise RplaError(f"Turn {turn.id} is not in this chat.")
        opened = self._open(turn)
        assert opened is not None
        return opened

    def rename(self, title: str) -> None:
        """Give the chat a title."""
        self._log.rename(self.id, title.strip())

    def delete(self) -> None:
        """Put the chat away; `undelete` brings it back."""
        self._log.delete(self.id)

    def undelete(self) -> None:
        """Bring the chat back."""
        self._log.undelete(self.id)

    def set_persona(self, persona: Persona) -> None:
        """Change who the user is, from the next turn on."""
        self.persona = persona
        self._builder = self._history = None

    def set_model(self, model: BaseChatModel) -> None:
        """Change the model, from the next turn on."""
        self.model = model
        self._builder = self._history = None

    # How a turn runs

    @property
    def _macros(self) -> Macros:
        started = datetime.fromtimestamp(self._info.created)
        return Macros(char=self.character.spoken_name, user=self.persona.name, seed=self.id, started=started)

    @property
    def _count(self) -> Callable[[str], int]:
        return partial(count_tokens_with, self.model)

    async def _ready(self, text: str) -> None:
        """Load the model and lay out what never changes in this chat."""
        await self.settled()
        if self._builder is None or self._history is None:
            load = getattr(self.model, "load", None)
            if load is not None:
                await load()
            await asyncio.to_thread(self._lay_out, text)

    def _lay_out(self, text: str) -> None:
        macros = self._macros
        room = context_window_of(self.model) - self._settings.sampling.max_tokens
        builder = PromptBuilder(
            self.character, self.persona, self.alignment, macros, count_tokens=self._count, room=room
        )
        builder.settle(next((turn.text for turn in self._branch if turn.role == "user"), text))
        messages = [message_of(turn) for turn in self._branch]
        self._history = History.load(builder.history_room, messages, self._count)
        if self.alignment.lore and self.character.lore.entries:
            self._recallers = (LoreRecaller(self.character.lore, macros, self._count),)
        self._builder = builder

    async def _reply(self, begun: Turn | None = None) -> AsyncGenerator[TurnEvent, None]:
        """Run the graph in a task of its own; what came is kept where the model fails or the consumer leaves early."""
        events: asyncio.Queue[TurnEvent | None] = asyncio.Queue()
        commits: list[asyncio.Task[Turn]] = []

        async def commit(draft: Draft) -> Turn:
            commits.append(asyncio.create_task(asyncio.to_thread(self._keep, draft, begun)))
            return await asyncio.shield(commits[0])

        context = self._context(begun, commit)
        # LangSmith's tracing is switched on by variables meant for other programs; no turn leaves this machine for it.
        with tracing_context(enabled=False):
            job = asyncio.create_task(_run(context, events), context=contextvars.copy_context())
        shown = context.begun
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, TextDelta):
                    shown += event.text
                elif isinstance(event, TurnReplaced):
                    shown = event.text
                yield event
            await job
        finally:
            job.cancel()
            await asyncio.wait([job, *commits])
            if not commits and (arrived := shown.removeprefix(context.begun).rstrip()):
                await asyncio.to_thread(self._keep, Draft(text=arrived, finish="stopped"), begun)
        self._start_prefill()

    def _context(self, begun: Turn | None, commit: Callable[[Draft], Awaitable[Turn]]) -> ChatContext:
        assert self._builder is not None
        assert self._history is not None
        sampling, chat = self._settings.sampling, self._settings.chat
        names = dict.fromkeys((self.persona.name, "User"))
        options = Options(
            **sampling.model_dump(),
            stop=tuple(f"\n{name}:" for name in names if name != self.character.spoken_name),
            conversation=self.id,
        )
        return ChatContext(
            model=self.model,
            options=options,
            moment=Moment(texts=[turn.text for turn in self._branch[-_SCANNED_TURNS:]]),
            build_prompt=partial(self._prompt, begun),
            new_guard=lambda: Guard(self.character, self.persona, role=self.alignment.check),
            commit=commit,
            recallers=self._recallers,
            begun=f"{begun.text.rstrip()} " if begun else "",
            strict=chat.strict,
            repairs=chat.repairs if self.alignment.check else 0,
        )

    def _prompt(self, begun: Turn | None, recalled: Sequence[Section], reminder: str) -> Prompt:
        assert self._builder is not None
        assert self._history is not None
        return self._builder.build(self._history, recalled, _CONTINUE if begun else reminder)

    def _keep(self, draft: Draft, begun: Turn | None) -> Turn:
        meta: dict[str, Any] = {"sections": [[s.name, s.tokens, s.source] for s in draft.sections]}
        if draft.finish != "stop":
            meta["finish"] = draft.finish
        if draft.breach:
            meta["breach"] = draft.breach
        if draft.repairs:
            meta["repairs"] = draft.repairs
        if draft.usage:
            usage = asdict(draft.usage)
            meta["usage"] = [usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"]]
        text = draft.text
        if begun is not None:
            text = f"{begun.text.rstrip()} {draft.text}"
            self._cut(len(self._branch) - 1)
        counted = draft.usage.completion_tokens if draft.usage and begun is None and not draft.breach else None
        return self._append("character", text, meta, counted)

    def _take(self, text: str) -> tuple[Turn, bool]:
        """Save what the user says; and whether another process has moved the chat's head meanwhile."""
        elsewhere = self._log.head(self.id) != (self.head and self.head.id)
        return self._append("user", text, {}), elsewhere

    def _append(self, role: Role, text: str, meta: dict[str, Any], tokens: int | None = None) -> Turn:
        turn = self._log.append(self.id, self.head.id if self.head else None, role, text, meta=meta)
        self._branch.append(turn)
        if self._history is not None:
            self._history.append(message_of(turn), self._count(text) if tokens is None else tokens)
        return turn

    def _cut(self, length: int) -> None:
        """Shorten the open branch in memory; the log keeps what was there."""
        gone = len(self._branch) - length
        del self._branch[length:]
        if self._history is not None:
            if gone < len(self._history.window):
                for _ in range(gone):
                    self._history.pop()
            else:
                self._history = self._builder = None

    def _open(self, turn: Turn | None) -> Turn | None:
        self._log.set_head(self.id, turn.id if turn else None)
        branch = self._log.branch(turn.id) if turn else []
        shared = 0
        for old, new in zip(self._branch, branch, strict=False):
            if old.id != new.id:
                break
            shared += 1
        self._cut(shared)
        for later in branch[shared:]:
            self._branch.append(later)
            if self._history is not None:
                self._history.append(message_of(later), self._count(later.text))
        return turn

    def _place(self, turn: Turn) -> int:
        for place, on_branch in enumerate(self._branch):
            if on_branch.id == turn.id:
                return place
        raise RplaError("That turn is not on the open branch.", "Open its branch first.")

    def _start_prefill(self) -> None:
        wanted = self._settings.chat.prefill and capabilities_of(self.model).prefill
        if not wanted or self._builder is None or self._history is None:
            return
        messages = self._builder.stable_messages(self._history)
        prefill: Any = self.model
        self._prefill = asyncio.create_task(prefill.prefill(messages, self.id))


@cache
def _graph() -> CompiledStateGraph[Any, ChatContext, Any, Any]:
    return build_chat_graph().compile(name="chat")


async def _run(context: ChatContext, events: asyncio.Queue[TurnEvent | None]) -> None:
    try:
        async for part in _graph().astream({}, context=context, stream_mode="custom", version="v2"):
            event: Any = part["data"]
            events.put_nowait(event)
    finally:
        events.put_nowait(None)


def _lasting(turn: Turn) -> dict[str, Any]:
    """What of a turn's meta still holds when its text is said again elsewhere."""
    return {key: value for key, value in turn.meta.items() if key in ("greeting",)}
