"""One conversation of one user with one character: talking, and moving about in the tree of what was said."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph
from langsmith import tracing_context

from rpla.afterwards import Afterwards
from rpla.core.alignment import Alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TurnEvent, TurnStarted
from rpla.core.guard import Guard, user_labels
from rpla.core.history import History
from rpla.core.models.base import Options
from rpla.core.models.stream import capabilities_of, context_window_of, count_tokens_with
from rpla.core.prompt import Prompt, PromptBuilder, Section, message_of
from rpla.core.settings import Settings
from rpla.graphs.chat import ChatContext, Draft, build_chat_graph
from rpla.memory.looking_up import GivenRecaller
from rpla.memory.memories import Memory, Recalled
from rpla.memory.passages import Passage
from rpla.memory.recall import Moment, Recaller
from rpla.memory.remembering import viewpoint_at
from rpla.mind import Mind
from rpla.tree import ChatTree

_CONTINUE = "Go on from the very end of {{char}}'s last words, without repeating them."


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is worked out once for a branch, a persona and a model, and then kept up turn by turn."""

    builder: PromptBuilder
    history: History
    recallers: Sequence[Recaller]


class Chat(ChatTree):
    """A conversation with a character: `ChatTree` has what was said and how to move about in it.

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
        mind: Mind | None = None,
    ) -> None:
        super().__init__(log, info, character, persona)
        self.alignment, self.model = alignment, model
        self.mind = mind or Mind(character, alignment, settings)
        """What the character remembers and can look up; nothing where none is given."""
        self._settings = settings
        self._turn_lock = asyncio.Lock()
        self._afterwards = Afterwards()
        self._layout: _Layout | None = None
        self._given: Sequence[Passage | str] = ()

    # Talking

    async def stream(self, text: str, given: Sequence[Passage | str] = ()) -> AsyncGenerator[TurnEvent, None]:
        """Say something and stream the answer. Closing the stream early stops the model; what came is kept, marked.

        `given` are passages to answer from, for alignments whose knowledge is given. Raises RplaError where the text is
        empty, does not fit, cannot be saved, or the model fails. Once `TurnStarted` is out, the text is saved:
        `regenerate` answers it.
        """
        if not text.strip():
            raise RplaError("There is nothing to say.", "Send some text.")
        if given and self.alignment.knowledge != "given":
            raise RplaError(f"The alignment {self.alignment.name} takes no passages.", "Use oracle, or leave them out.")
        async with self._turn_lock:
            self._given = given
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
                self._start_afterwards(await self._ready())

    async def settled(self) -> None:
        """Wait for work in the background: prefill, remembering, summaries, reflection."""
        await self._afterwards.settled()

    async def leave(self) -> None:
        """Stop work in the background. What is cut off is done at the next start; nothing is lost."""
        self.mind.pause()
        await self._afterwards.make_way()
        await self.mind.leave(self._log, self.id)

    def close(self) -> None:
        """Cut work in the background off, without waiting for it."""
        self._afterwards.stop()

    # What is remembered

    def memories(self, words: str = "") -> list[Recalled]:
        """What can be recalled here and now, the best first; without words all of it, the newest first.

        Raises RplaError where the character has no memory.
        """
        memory, viewpoint = self.mind.require_memory(), viewpoint_at(self.id, self._branch)
        if words.strip():
            return memory.recall(words, viewpoint)
        return [memory.weighed(one) for one in reversed(memory.all(viewpoint))]

    def note(self, text: str) -> Memory:
        """Have the character remember something from here on: where the chat is rewound, it is undone.

        Raises RplaError where it is empty or too long, or the character has no memory.
        """
        return self.mind.require_memory().note(
            text, viewpoint_at(self.id, self._branch), turn=self.head.id if self.head else None
        )

    # Who speaks

    def set_persona(self, persona: Persona) -> None:
        """Change who the user is, from the next turn on."""
        self.persona = persona
        self._layout = None

    def set_model(self, model: BaseChatModel) -> None:
        """Change the model, from the next turn on."""
        self.model = model
        self._layout = None

    # How a turn runs

    async def _ready(self) -> _Layout:
        """Load the model and lay out what never changes in this chat."""
        self.mind.pause()
        await self._afterwards.make_way()
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
        mind = self.mind
        builder = PromptBuilder(
            self.character, persona, self.alignment, macros, count_tokens=count, room=room, notes_room=mind.room(room)
        )
        builder.settle(next((turn.text for turn in branch if turn.role == "user"), ""))
        history = mind.history(builder.history_room, branch, count)
        recallers = mind.recallers(macros, count, room)
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
        self._start_afterwards(layout)

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

        recallers = layout.recallers
        if self._given:
            count = partial(count_tokens_with, self.model)
            name = self.character.spoken_name
            recallers = [*recallers, GivenRecaller(self._given, name, count, self._settings.knowledge)]
        return ChatContext(
            model=self.model,
            options=options,
            moment=Moment(turns=self._branch, window=len(layout.history.window), chat=self.id),
            build_prompt=build_prompt,
            new_guard=new_guard,
            commit=commit,
            recallers=recallers,
            begun=f"{to.text.rstrip()} " if continued else "",
            strict=chat.strict,
            repairs=chat.repairs if self.alignment.check else 0,
        )

    def _keep(self, draft: Draft, to: Turn) -> Turn:
        meta: dict[str, Any] = {"sections": [_packed(section) for section in draft.sections]}
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

    def _start_afterwards(self, layout: _Layout) -> None:
        prefills = self._settings.chat.prefill and capabilities_of(self.model).prefill and layout is self._layout
        first = partial(self._prefill, layout) if prefills else None
        self.mind.resume()
        self._afterwards.start(
            first, [self.mind.learn_notes, self._remember, partial(self._sum_up, layout), self._reflect]
        )

    async def _prefill(self, layout: _Layout) -> None:
        model: Any = self.model
        await model.prefill(layout.builder.stable_messages(layout.history), self.id)

    async def _remember(self) -> None:
        await self.mind.remember(self._log, self.id, self.model, self._thinking)

    async def _sum_up(self, layout: _Layout) -> None:
        if layout is self._layout:
            await self.mind.sum_up(layout.history, self._branch, self.model, self._thinking, self._macros)

    async def _reflect(self) -> None:
        await self.mind.reflect(self.id, self._branch, self.model, self._thinking, self._macros)

    @property
    def _thinking(self) -> Options:
        """How the model is asked about what was said: apart from the conversation, so that its cache is left alone."""
        return Options(seed=self._settings.sampling.seed, conversation=f"thinking {self.id}")


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


def _packed(section: Section) -> list[Any]:
    """A section as a turn's meta keeps it: without its text."""
    packed: list[Any] = [section.name, section.tokens, section.source]
    if section.items:
        packed.append([[item.id, round(item.score, 3), item.reason] for item in section.items])
    return packed


def _joined(begun: Turn, draft: Draft) -> str:
    """A reply and what goes on from it, with the white space that the model put between, or a space between words."""
    before, after = begun.text.rstrip(), draft.text.lstrip()
    between = draft.spoken[: len(draft.spoken) - len(draft.spoken.lstrip())]
    if not between and before[-1:].isascii() and after[:1].isascii():
        between = " "
    return f"{before}{between}{after}"
