"""One conversation of one user with one character: talking, and moving about in the tree of what was said."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache, partial
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph
from langsmith import tracing_context

from rpla.core.alignment import Alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TurnEvent, TurnStarted
from rpla.core.guard import Guard, user_labels
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


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is worked out once for a branch, a persona and a model, and then kept up turn by turn."""

    builder: PromptBuilder
    history: History
    recallers: Sequence[Recaller]


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
        self._layout: _Layout | None = None
        self._replying = False

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
            asked, elsewhere = await asyncio.to_thread(self._take, text)
            if elsewhere:
                yield Notice("This chat went on elsewhere too; what was said there is on another branch.")
            yield TurnStarted(asked)
            async with contextlib.aclosing(self._reply(asked)) as events:
                async for event in events:
                    yield event

    async def regenerate(self) -> AsyncGenerator[TurnEvent, None]:
        """Answer the user's last message anew, as an alternative beside the reply that is there."""
        async with self._turn_lock:
            place = next((n for n in reversed(range(len(self._branch))) if self._branch[n].role == "user"), None)
            if place is None:
                raise RplaError("There is nothing to answer yet.", "Say something first.")
            before, asked = self._branch, self._branch[place]
            self._show(before[: place + 1])
            try:
                yield TurnStarted(None)
                async with contextlib.aclosing(self._reply(asked)) as events:
                    async for event in events:
                        yield event
            finally:
                if self.head is asked:
                    self._show(before)

    async def extend(self) -> AsyncGenerator[TurnEvent, None]:
        """Let the character go on with its last reply; the longer one stands beside it."""
        async with self._turn_lock:
            last = self.head
            if last is None or last.role != "character":
                raise RplaError("There is no reply to continue.", "Say something first.")
            yield TurnStarted(None)
            async with contextlib.aclosing(self._reply(last)) as events:
                async for event in events:
                    yield event

    async def warm(self) -> None:
        """Load the model and read what never changes into its cache, so that the first reply comes sooner."""
        async with self._turn_lock:
            if self.alignment.demonstrations != "retrieved" or any(turn.role == "user" for turn in self._branch):
                self._start_prefill(await self._ready())

    async def settled(self) -> None:
        """Wait for work in the background, such as prefill."""
        if self._prefill is not None:
            await asyncio.gather(self._prefill, return_exceptions=True)
            self._prefill = None

    # Moving about in the tree

    def greet(self, number: int = 0) -> Turn | None:
        """Open the chat with the character's greeting of that number; None where the card has none."""
        self._require_rest()
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
        self._require_rest()
        place = self._place(turn)
        following = [(later.role, later.text, _lasting(later)) for later in self._branch[place + 1 :]]
        said = self._log.append_all(
            self.id, turn.parent, [(turn.role, text, {**_lasting(turn), "edited": turn.id}), *following]
        )
        self._show([*self._branch[:place], *said])
        return said[0]

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
        self._layout = None

    def set_model(self, model: BaseChatModel) -> None:
        """Change the model, from the next turn on."""
        self.model = model
        self._layout = None

    # How a turn runs

    @property
    def _macros(self) -> Macros:
        started = datetime.fromtimestamp(self._info.created)
        return Macros(char=self.character.spoken_name, user=self.persona.name, seed=self.id, started=started)

    async def _ready(self) -> _Layout:
        """Load the model and lay out what never changes in this chat."""
        await self.settled()
        while (layout := self._layout) is None:
            load = getattr(self.model, "load", None)
            if load is not None:
                await load()
            # Commands may change all of these from another thread meanwhile: then what was laid out is of no use.
            persona, model, branch = self.persona, self.model, self._branch
            layout = await asyncio.to_thread(self._lay_out, persona, model, branch)
            if self.persona is persona and self.model is model and self._branch is branch:
                self._layout = layout
        return layout

    def _lay_out(self, persona: Persona, model: BaseChatModel, branch: Sequence[Turn]) -> _Layout:
        macros, count = self._macros, partial(count_tokens_with, model)
        room = context_window_of(model) - self._settings.sampling.max_tokens
        builder = PromptBuilder(self.character, persona, self.alignment, macros, count_tokens=count, room=room)
        builder.settle(next((turn.text for turn in branch if turn.role == "user"), ""))
        history = History.load(builder.history_room, [message_of(turn) for turn in branch], count)
        lore = self.character.lore
        recallers = (LoreRecaller(lore, macros, count),) if self.alignment.lore and lore.entries else ()
        return _Layout(builder, history, recallers)

    async def _reply(self, to: Turn) -> AsyncGenerator[TurnEvent, None]:
        """Run the graph in a task of its own; what came is kept where the model fails or the consumer leaves early.

        `to` is the user's turn to answer, or the character's to go on with.
        """
        self._replying = True
        try:
            async with contextlib.aclosing(self._run_turn(to, await self._ready())) as events:
                async for event in events:
                    yield event
        finally:
            self._replying = False

    async def _run_turn(self, to: Turn, layout: _Layout) -> AsyncGenerator[TurnEvent, None]:
        events: asyncio.Queue[TurnEvent | None] = asyncio.Queue()
        commits: list[asyncio.Task[Turn]] = []
        guards: list[Guard] = []

        def keep(draft: Draft) -> asyncio.Task[Turn]:
            commits.append(asyncio.create_task(asyncio.to_thread(self._keep, draft, to)))
            return commits[-1]

        async def commit(draft: Draft) -> Turn:
            return await asyncio.shield(keep(draft))

        def new_guard() -> Guard:
            guards.append(Guard(self.character, self.persona, role=self.alignment.check))
            return guards[-1]

        context = self._context(layout, to, commit, new_guard)
        # LangSmith's tracing is switched on by variables meant for other programs; no turn leaves this machine for it.
        with tracing_context(enabled=False):
            job = asyncio.create_task(_run(context, events), context=contextvars.copy_context())
        try:
            while (event := await events.get()) is not None:
                yield event
            await job
        finally:
            job.cancel()
            await asyncio.wait([job, *commits])
            arrived = guards[-1] if guards else None
            if not commits and arrived and arrived.kept.strip():
                keep(Draft(text=arrived.kept.strip(), spoken=arrived.text, finish="stopped"))
            # Whoever is cancelled a second time still leaves the writing to finish.
            for writing in commits:
                await asyncio.shield(writing)
        self._start_prefill(layout)

    def _context(
        self,
        layout: _Layout,
        to: Turn,
        commit: Callable[[Draft], Awaitable[Turn]],
        new_guard: Callable[[], Guard],
    ) -> ChatContext:
        sampling, chat = self._settings.sampling, self._settings.chat
        continued = to.role == "character"
        options = Options(
            **sampling.model_dump(),
            stop=tuple(f"\n{name}:" for name in user_labels(self.character, self.persona)),
            conversation=self.id,
        )

        def build_prompt(recalled: Sequence[Section], reminder: str) -> Prompt:
            return layout.builder.build(layout.history, recalled, _CONTINUE if continued else reminder)

        return ChatContext(
            model=self.model,
            options=options,
            moment=Moment(texts=[turn.text for turn in self._branch[-_SCANNED_TURNS:]]),
            build_prompt=build_prompt,
            new_guard=new_guard,
            commit=commit,
            recallers=layout.recallers,
            begun=f"{to.text.rstrip()} " if continued else "",
            strict=chat.strict,
            repairs=chat.repairs if self.alignment.check else 0,
        )

    def _keep(self, draft: Draft, to: Turn) -> Turn:
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
        if to.role == "character":
            turn = self._log.append(self.id, to.parent, "character", _joined(to, draft), meta=meta)
            self._show([*self._branch[:-1], turn])
            return turn
        turn = self._log.append(self.id, to.id, "character", draft.text, meta=meta)
        counted = draft.usage.completion_tokens if draft.usage and not draft.breach else None
        self._add(turn, counted)
        return turn

    def _take(self, text: str) -> tuple[Turn, bool]:
        """Save what the user says; and whether another process has moved the chat's head meanwhile."""
        head = self.head.id if self.head else None
        elsewhere = self._log.head(self.id) != head
        turn = self._log.append(self.id, head, "user", text)
        self._add(turn)
        return turn, elsewhere

    def _add(self, turn: Turn, tokens: int | None = None) -> None:
        """The open branch has one more turn; what was laid out for it stays good."""
        self._branch = [*self._branch, turn]
        if self._layout is not None:
            if tokens is None:
                tokens = count_tokens_with(self.model, turn.text)
            self._layout.history.append(message_of(turn), tokens)

    def _show(self, branch: list[Turn]) -> None:
        """Another branch is open."""
        asked = [next((turn.text for turn in turns if turn.role == "user"), None) for turns in (self._branch, branch)]
        shorter = len(branch) < len(self._branch) and branch == self._branch[: len(branch)]
        gone = len(self._branch) - len(branch)
        layout, self._branch = self._layout, branch
        if layout is not None and shorter and asked[0] == asked[1] and gone < len(layout.history.window):
            for _ in range(gone):
                layout.history.pop()
        else:
            self._layout = None

    def _open(self, turn: Turn | None) -> Turn | None:
        self._require_rest()
        self._log.set_head(self.id, turn.id if turn else None)
        self._show(self._log.branch(turn.id) if turn else [])
        return turn

    def _require_rest(self) -> None:
        if self._replying:
            raise RplaError("A reply is under way.", "Wait for its end, or stop it.")

    def _place(self, turn: Turn) -> int:
        for place, on_branch in enumerate(self._branch):
            if on_branch.id == turn.id:
                return place
        raise RplaError("That turn is not on the open branch.", "Open its branch first.")

    def _start_prefill(self, layout: _Layout) -> None:
        if self._settings.chat.prefill and capabilities_of(self.model).prefill and layout is self._layout:
            messages = layout.builder.stable_messages(layout.history)
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


def _joined(begun: Turn, draft: Draft) -> str:
    """A reply and what goes on from it, with the white space that the model put between, or a space between words."""
    before, after = begun.text.rstrip(), draft.text.lstrip()
    between = draft.spoken[: len(draft.spoken) - len(draft.spoken.lstrip())]
    if not between and before[-1:].isascii() and after[:1].isascii():
        between = " "
    return f"{before}{between}{after}"


def _lasting(turn: Turn) -> dict[str, Any]:
    """What of a turn's meta still holds when its text is said again elsewhere."""
    return {key: value for key, value in turn.meta.items() if key in ("greeting",)}
