"""The prompt: an ordered list of named sections, each with its tokens and its source.

The order is for speed: a model that keeps its cache reads only what changed. What never changes in a chat comes first,
then the history, which only grows; what changes with every turn goes last, inside the newest user message, and is not
kept in the history.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from rpla.core.alignment import Alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import Turn
from rpla.core.demonstrations import SHOWN, Exchange, nearest_exchanges, read_exchanges
from rpla.core.errors import RplaError
from rpla.core.history import MESSAGE_TOKENS, History
from rpla.core.macros import Macros

CONTRACT = (
    "You are {{char}}, talking with {{user}}. Be {{char}} from the first word to the last: speak in the first person, "
    "in {{char}}'s own voice and manner, and know only what {{char}} can know. When {{user}} mentions something beyond "
    "{{char}}'s time or world, answer as {{char}} would who has never heard of it. Never write {{user}}'s words or "
    "deeds, and never speak as an assistant or a machine. Keep replies to a few sentences unless more is asked for."
)
_OPENING = "[The conversation begins.]"
_FRAME_TOKENS = 48
"""What holds the sections together: the chat template, the opening, the brackets around notes."""
_PREFIX_SHARE = 0.75
"""Most of the room that what never changes may take, so that there is room to talk."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a section that was recalled. It names what it stands for and never holds its text.

    Items are kept with the turn: what is forgotten or erased later must not live on there.
    """

    id: str
    score: float
    """How well it fitted, comparable within its section."""
    reason: str
    """Why it came to mind, such as ``key: ledger`` or ``words 0.41, meaning 0.72``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A named part of the prompt."""

    name: str
    text: str
    source: str = ""
    """Where it comes from: the card, the entries that matched, the turns it spans."""
    tokens: int = 0
    items: tuple[Item, ...] = ()
    """What it is made of, where that was recalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is given for one reply."""

    messages: tuple[BaseMessage, ...]
    sections: tuple[Section, ...]
    cut: tuple[str, ...] = ()
    """What had to be left out for lack of room, in words."""

    @property
    def tokens(self) -> int:
        """Tokens of all sections."""
        return sum(section.tokens for section in self.sections)

    def explain(self) -> list[Section]:
        """Name, tokens and source of each section, in the order the model reads them; history without its text."""
        return list(self.sections)


class PromptBuilder:
    """Builds one chat's prompts. What never changes is made once, from the first user message on."""

    def __init__(
        self,
        character: Character,
        persona: Persona,
        alignment: Alignment,
        macros: Macros,
        *,
        count_tokens: Callable[[str], int],
        room: int,
        notes_room: int = 0,
    ) -> None:
        """`room` is the context window less the longest reply, in tokens; `notes_room` what of it is kept free for
        memories and passages.
        """
        self._character, self._persona, self._alignment, self._macros = character, persona, alignment, macros
        self._count, self._room = count_tokens, room
        self._prefix: tuple[list[BaseMessage], list[Section], list[str]] | None = None
        closing = alignment.card == "full" and character.closing_instructions.strip()
        self._closing = self._section("closing", closing, "card: post_history_instructions") if closing else None
        lore_room = character.lore.token_budget if alignment.lore and character.lore.entries else 0
        self._tail_room = (self._closing.tokens if self._closing else 0) + lore_room + notes_room

    def settle(self, first_message: str) -> None:
        """Fix what never changes in this chat; retrieved demonstrations are the nearest to its first message."""
        if self._prefix is None:
            self._prefix = self._make_prefix(first_message)

    @property
    def settled(self) -> bool:
        """Whether `settle` was called."""
        return self._prefix is not None

    @property
    def history_room(self) -> int:
        """Tokens that the history with the newest message may take. Raises RplaError where there are none."""
        assert self._prefix is not None
        room = self._room - sum(section.tokens for section in self._prefix[1]) - self._tail_room - _FRAME_TOKENS
        if room < 32:
            raise RplaError(
                f"The model has room for {self._room} tokens beside the reply: too few for {self._character.name}.",
                "Raise the model's context, lower sampling.max_tokens, or take a shorter alignment such as bare.",
            )
        return room

    def stable_messages(self, history: History) -> list[BaseMessage]:
        """The prompt of a finished turn without what changes: for prefill, and the beginning of the next prompt."""
        assert self._prefix is not None
        return [*self._prefix[0], *self._opened(history)]

    def build(self, history: History, recalled: Sequence[Section] = (), reminder: str = "") -> Prompt:
        """The prompt for a reply to the history's last turn.

        Raises RplaError where the newest message alone does not fit.
        """
        assert self._prefix is not None
        messages, sections, cut = self._prefix
        tail = [section for section in (*recalled, self._closing) if section is not None]
        if reminder:
            tail.append(self._section("reminder", reminder, "check"))
        if history.newest_tokens > self.history_room:
            raise RplaError(
                f"The message has {history.newest_tokens} tokens; there is room for {self.history_room}.",
                "Send it in parts, or raise the model's context.",
            )
        spoken = self._opened(history)
        if tail:
            notes = "\n\n".join(section.text for section in tail)
            wrapped = f"[Notes for {self._macros.char}, which {self._macros.user} does not see:\n{notes}]"
            last = spoken[-1]
            if isinstance(last, HumanMessage):
                spoken = [*spoken[:-1], HumanMessage(f"{last.text}\n\n{wrapped}")]
            else:
                spoken = [*spoken, HumanMessage(wrapped)]
        first = history.dropped + 1
        talked = [
            Section(
                name="history",
                text="",
                source=f"turns {first} to {history.dropped + len(history.window)}",
                tokens=history.tokens,
            )
        ]
        if summary := history.summarised:
            before = Section(name="summary", text=summary.note, source=summary.source, tokens=history.summary_tokens)
            talked.insert(0, before)
        return Prompt(
            messages=(*messages, *spoken),
            sections=(*sections, *talked, *tail),
            cut=tuple(cut),
        )

    def _opened(self, history: History) -> list[BaseMessage]:
        """The window in strict alternation, begun by the user: many chat templates refuse anything else.

        What is summed up stands at its head.
        """
        note = history.summarised.note if history.summarised else ""
        spoken: list[BaseMessage] = []
        for message in history.window:
            if not message.text:  # what was erased
                continue
            if not spoken and isinstance(message, AIMessage):
                spoken.append(HumanMessage(note or _OPENING))
            elif not spoken and note:
                message = HumanMessage(f"{note}\n\n{message.text}")
            if spoken and type(spoken[-1]) is type(message):
                message = type(message)(f"{spoken.pop().text}\n\n{message.text}")
            spoken.append(message)
        return spoken

    def _make_prefix(self, first_message: str) -> tuple[list[BaseMessage], list[Section], list[str]]:
        limit = int((self._room - self._tail_room) * _PREFIX_SHARE)
        sections = self._system_sections()
        exchanges = self._exchanges(first_message)
        cut: list[str] = []
        sizes = [self._exchange_tokens(exchange) for exchange in exchanges]
        used = sum(section.tokens for section in sections)
        kept = len(exchanges)
        while kept and used + sum(sizes[:kept]) > limit:
            kept -= 1
        if kept < len(exchanges):
            cut.append(f"demonstrations ({len(exchanges) - kept} of {len(exchanges)})")
        for name in ("lore", "profile", "persona", "scenario", "personality", "card"):
            if used <= limit:
                break
            if (section := next((section for section in sections if section.name == name), None)) is None:
                continue
            shorter = self._shortened(section, max(0, section.tokens - (used - limit))) if name == "card" else None
            place = sections.index(section)
            sections[place : place + 1] = [shorter] if shorter else []
            used -= section.tokens - (shorter.tokens if shorter else 0)
            cut.append(f"{name} (shortened)" if shorter else name)
        messages: list[BaseMessage] = []
        if sections:
            messages.append(SystemMessage("\n\n".join(section.text for section in sections)))
        if shown := exchanges[:kept]:
            for exchange in shown:
                messages += [HumanMessage(exchange.user), AIMessage(exchange.character)]
            source = "card: mes_example" + (
                ", nearest by BM25" if self._alignment.demonstrations == "retrieved" else ""
            )
            text = "\n".join(f"{exchange.user}\n{exchange.character}" for exchange in shown)
            sections = [
                *sections,
                Section(
                    name="demonstrations", text=text, source=f"{source}, {kept} exchanges", tokens=sum(sizes[:kept])
                ),
            ]
        return messages, sections, cut

    def _system_sections(self) -> list[Section]:
        character, card = self._character, self._alignment.card
        if card == "none":
            return []
        if card == "line":
            line = character.line.rstrip(".")
            text = f"You are {character.name}, {line}." if line else f"You are {character.name}."
            return [self._section("line", text, "profile" if character.profile else "card: description")]
        contract = character.instructions.replace("{{original}}", CONTRACT) or CONTRACT
        sections = [self._section("contract", contract, "card: system_prompt" if character.instructions else "rpla")]
        parts = [
            ("card", character.description, "card: description"),
            (
                "personality",
                f"Personality: {character.personality}" if character.personality else "",
                "card: personality",
            ),
            ("scenario", f"Scenario: {character.scenario}" if character.scenario else "", "card: scenario"),
            ("profile", self._profile_text(), "profile"),
            (
                "persona",
                f"About {{{{user}}}}: {self._persona.description}" if self._persona.description else "",
                "persona",
            ),
        ]
        if self._alignment.lore:
            constant = [entry for entry in character.lore.entries if entry.standing]
            constant.sort(key=lambda entry: entry.order)
            parts.append(("lore", "\n".join(entry.content for entry in constant), "card: constant lore"))
        return [*sections, *(self._section(name, text, source) for name, text, source in parts if text.strip())]

    def _profile_text(self) -> str:
        profile = self._character.profile
        if profile is None:
            return ""
        lines = []
        if profile.catchphrases:
            lines.append("Things {{char}} says: " + " / ".join(profile.catchphrases))
        if profile.cannot_know:
            lines.append("{{char}} has never heard of: " + "; ".join(profile.cannot_know) + ".")
        return "\n".join(lines)

    def _exchanges(self, first_message: str) -> tuple[Exchange, ...]:
        if self._alignment.demonstrations == "none":
            return ()
        expand = self._macros.expand
        exchanges = tuple(
            Exchange(expand(exchange.user), expand(exchange.character))
            for exchange in read_exchanges(self._character.example_dialogue)
        )
        if self._alignment.demonstrations == "retrieved":
            return nearest_exchanges(exchanges, first_message)
        return exchanges[:SHOWN]

    def _exchange_tokens(self, exchange: Exchange) -> int:
        return self._count(exchange.user) + self._count(exchange.character) + 2 * MESSAGE_TOKENS

    def _section(self, name: str, text: str, source: str) -> Section:
        text = self._macros.expand(text).strip()
        return Section(name=name, text=text, source=source, tokens=self._count(text))

    def _shortened(self, section: Section, tokens: int) -> Section | None:
        """The section cut to its first sentences that fit."""
        text = section.text
        while text and (size := self._count(text)) > tokens:
            text = text[: int(len(text) * min(0.9, tokens / size))]
            ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|[。！？]", text)]
            text = text[: ends[-1]] if ends else text
        return replace(section, text=text, tokens=self._count(text)) if text else None


def message_of(turn: Turn) -> BaseMessage:
    """A turn as the model reads it."""
    return HumanMessage(turn.text) if turn.role == "user" else AIMessage(turn.text)
