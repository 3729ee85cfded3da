"""Chats as files: Markdown to read, JSON that loses nothing, and SillyTavern's JSONL, which other programs read too."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpla.core.chatlog import ChatInfo, ChatLog, Role, Turn
from rpla.core.errors import RplaError
from rpla.core.ids import new_id
from rpla.core.terminal import terminal_safe

FORMAT = "rpla-chat"
VERSION = 1
LONGEST_LINE = 4_000_000
"""Most characters in one line of a SillyTavern file: one message with all its swipes."""
LARGEST = 256_000_000
"""Most characters in a file of our own format."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_HUMANIZED = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2}) ?@(\d{1,2})h ?(\d{1,2})m ?(\d{1,2})s(?: ?(\d{1,3})ms)?")
_LATEST_S = 1e11


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the two speakers of a chat are called."""

    user: str
    character: str

    def of(self, role: Role) -> str:
        """The name of whoever has that role."""
        return self.user if role == "user" else self.character


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A chat that came from a file."""

    chat: ChatInfo
    notes: tuple[str, ...]
    """What of the file was left out or changed, a sentence each."""


def export_markdown(info: ChatInfo, turns: Sequence[Turn], names: Names) -> str:
    """The open branch, to read. `turns` is that branch or the whole chat."""
    parts = [f"# {_on_one_line(info.title) or names.character}"]
    parts += [f"**{_on_one_line(names.of(turn.role))}:**\n\n{turn.text.strip()}" for turn in open_branch(info, turns)]
    return "\n\n".join(parts) + "\n"


def export_json(info: ChatInfo, turns: Sequence[Turn], names: Names) -> str:
    """All that is known of the chat. `turns` is the whole chat."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "id": info.id,
        "title": info.title,
        "created": info.created,
        "updated": info.updated,
        "user": {"id": info.user, "name": names.user},
        "character": {"id": info.character, "name": names.character},
        "branch": [turn.id for turn in open_branch(info, turns)],
        "turns": [
            {
                "id": turn.id,
                "parent": turn.parent,
                "role": turn.role,
                "text": turn.text,
                "created": turn.created,
                "meta": dict(turn.meta),
            }
            for turn in turns
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def export_sillytavern(info: ChatInfo, turns: Sequence[Turn], names: Names) -> str:
    """The open branch as SillyTavern's JSONL, with the alternatives beside each turn as swipes.

    `turns` is the whole chat. What was said after an alternative that is not on the open branch has no place there.
    """
    beside: dict[tuple[str | None, Role], list[Turn]] = defaultdict(list)
    for turn in turns:
        beside[turn.parent, turn.role].append(turn)
    lines: list[dict[str, Any]] = [
        {
            "user_name": names.user,
            "character_name": names.character,
            "create_date": _iso(info.created),
            "chat_metadata": {},
        }
    ]
    for turn in open_branch(info, turns):
        swipes = beside[turn.parent, turn.role]
        lines.append(
            {
                "name": names.of(turn.role),
                "is_user": turn.role == "user",
                "is_system": False,
                "send_date": _iso(turn.created),
                "mes": turn.text,
                "swipes": [swipe.text for swipe in swipes],
                "swipe_id": next(place for place, swipe in enumerate(swipes) if swipe.id == turn.id),
                "extra": {},
            }
        )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def open_branch(info: ChatInfo, turns: Sequence[Turn]) -> list[Turn]:
    """Of the turns of a chat, those on the branch that is open, oldest first."""
    by_id = {turn.id: turn for turn in turns}
    branch: list[Turn] = []
    at = info.head
    while at is not None and at in by_id:
        branch.append(by_id[at])
        at = by_id[at].parent
    return branch[::-1]


def import_chat(text: str, log: ChatLog, *, user: str, character: str) -> Imported:
    """A new chat from a file's text, in our own format or SillyTavern's.

    Raises RplaError, and creates nothing, where the text is neither or is damaged.
    """
    ours = re.match(r'\ufeff?\s*\{\s*"format"\s*:\s*"' + FORMAT + '"', text)
    return (import_json if ours else import_sillytavern)(text, log, user=user, character=character)


def import_sillytavern(text: str, log: ChatLog, *, user: str, character: str) -> Imported:
    """A new chat from SillyTavern's JSONL; swipes become alternatives, and the chosen one's branch goes on.

    Raises RplaError naming the line, and creates nothing, where a line is not a message.
    """
    reading = _Reading()
    # Not splitlines(): JSON may hold U+2028 and the like as they are.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            reading.read(number, line)
    if not reading.lines:
        raise RplaError("The file holds no chat.", "SillyTavern's chats are .jsonl files, one message a line.")
    info = log.add_chat(user=user, character=character, turns=reading.turns, head=reading.head)
    return Imported(chat=info, notes=reading.notes())


def import_json(text: str, log: ChatLog, *, user: str, character: str) -> Imported:
    """A new chat from our own format, with all branches. Turns get new ids, so that a file can be imported twice.

    Raises RplaError, and creates nothing, where the file is not what `export_json` wrote.
    """
    if len(text) > LARGEST:
        raise RplaError(f"The file is longer than {LARGEST:,} characters.")
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise RplaError(f"The file is not valid JSON: {_reason(error)}.", "Export the chat again.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RplaError("The file is not a chat that rpla exported.")
    if found.get("version") != VERSION:
        raise RplaError(
            f"The file has version {found.get('version')!r} of the format; this rpla reads {VERSION}.", "Upgrade rpla."
        )
    try:
        chat = _ChatFile.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RplaError(f"{place} in the file is not valid: {first['msg']}.", "Export the chat again.") from error
    mender = _Mender()
    turns = [
        Turn(
            id=turn.id,
            chat="",
            parent=turn.parent,
            role=turn.role,
            text=mender.mended(turn.text),
            created=turn.created,
            meta=json.loads(mender.mended(json.dumps(turn.meta.model_dump(exclude_unset=True), ensure_ascii=False))),
        )
        for turn in chat.turns
    ]
    title = mender.mended(chat.title)
    head = chat.branch[-1] if chat.branch else None
    info = log.add_chat(user=user, character=character, title=title, turns=turns, head=head)
    return Imported(chat=info, notes=mender.notes())


class _Meta(BaseModel):
    """What the framework reads of a turn's meta; the rest is carried along."""

    model_config = ConfigDict(extra="allow")

    greeting: int = 0
    finish: str = ""
    breach: str = ""
    repairs: int = 0
    sections: list[tuple[str, int, str]] = Field(default_factory=list)
    usage: tuple[int, int, int] = (0, 0, 0)


class _TurnInFile(BaseModel):
    id: str
    parent: str | None
    role: Literal["user", "character"]
    text: str
    created: Annotated[float, Field(ge=0, le=_LATEST_S)]
    meta: _Meta = Field(default_factory=_Meta)


class _ChatFile(BaseModel):
    title: str = ""
    branch: list[str]
    turns: list[_TurnInFile]


class _Mender:
    """Replaces what no file in UTF-8 can hold, and counts it."""

    def __init__(self) -> None:
        self._mended = 0

    def mended(self, text: str) -> str:
        text, count = _SURROGATE.subn("\ufffd", text)
        self._mended += bool(count)
        return text

    def notes(self) -> tuple[str, ...]:
        return (f"{_times(self._mended, 'text')} held half a character; U+FFFD stands for it.",) if self._mended else ()


class _Reading:
    """The turns of a SillyTavern file, as its lines come in."""

    def __init__(self) -> None:
        self.lines = 0
        self.turns: list[Turn] = []
        self.head: str | None = None
        self._mender = _Mender()
        self._said_at = datetime.now(UTC).timestamp()
        self._character = ""
        self._system = self._empty = self._others = 0

    def read(self, number: int, line: str) -> None:
        message = _object_of(number, line)
        self.lines += 1
        if "mes" not in message and self.lines == 1 and ("user_name" in message or "chat_metadata" in message):
            self._said_at = _seconds(message.get("create_date")) or self._said_at
            self._character = str(message.get("character_name") or "")
            return
        said = message.get("mes")
        if not isinstance(said, str):
            raise RplaError(f"Line {number} is not a message: it has no text in mes.", "Mend or remove that line.")
        if message.get("is_system") is True:
            self._system += 1
            return
        texts, chosen = _alternatives(said, message.get("swipes"), message.get("swipe_id"))
        if not said.strip():
            self._empty += 1
            return
        role: Role = "user" if message.get("is_user") is True else "character"
        if role == "character" and self._character and message.get("name") not in (self._character, None):
            self._others += 1
        self._said_at = _seconds(message.get("send_date")) or self._said_at
        beside = [
            Turn(
                id=new_id(),
                chat="",
                parent=self.head,
                role=role,
                text=self._mender.mended(text),
                created=self._said_at,
            )
            for text in texts
        ]
        self.turns += beside
        self.head = beside[chosen].id

    def notes(self) -> tuple[str, ...]:
        counted = [
            (self._system, "line", "of the system was left out", "of the system were left out"),
            (self._empty, "message", "without text was left out", "without text were left out"),
            (self._others, "message", "is by another character of a group", "are by other characters of a group"),
        ]
        said = [f"{_times(count, noun)} {one if count == 1 else many}." for count, noun, one, many in counted if count]
        return (*said, *self._mender.notes())


def _object_of(number: int, line: str) -> Mapping[str, Any]:
    if len(line) > LONGEST_LINE:
        raise RplaError(f"Line {number} is longer than {LONGEST_LINE:,} characters.", "Shorten or remove that line.")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RplaError(f"Line {number} is not valid JSON: {_reason(error)}.", "Mend or remove that line.") from error
    if not isinstance(found, dict):
        raise RplaError(f"Line {number} is not a JSON object.", "SillyTavern's chats hold one object a line.")
    return found


def _alternatives(said: str, swipes: object, chosen: object) -> tuple[list[str], int]:
    """A message's alternatives that have text, what was said among them, and its place."""
    texts = [text for text in swipes if isinstance(text, str)] if isinstance(swipes, list) else []
    place = chosen if isinstance(chosen, int) and 0 <= chosen < len(texts) else -1
    if place < 0 or texts[place] != said:
        if said not in texts:
            texts.append(said)
        place = texts.index(said)
    kept = [number for number, text in enumerate(texts) if text.strip() or number == place]
    return [texts[number] for number in kept], kept.index(place)


def _seconds(date: object) -> float | None:
    """When a message was sent, of the several ways in which SillyTavern has written it."""
    if isinstance(date, str) and date.strip().isdecimal() and len(date) < 20:
        date = int(date)
    found: float | None = None
    if isinstance(date, int | float) and not isinstance(date, bool) and 0 < date < _LATEST_S * 1000:
        found = date / 1000
    elif isinstance(date, str) and len(date) < 100:
        found = _timestamp(date.strip())
    return found if found and 0 < found < _LATEST_S else None


def _timestamp(date: str) -> float | None:
    try:
        if match := _HUMANIZED.fullmatch(date):
            year, month, day, hour, minute, second, milliseconds = (int(part or 0) for part in match.groups())
            return datetime(year, month, day, hour, minute, second, milliseconds * 1000, UTC).timestamp()
        try:
            return datetime.fromisoformat(date).timestamp()
        except ValueError:
            return datetime.strptime(date.upper(), "%B %d, %Y %I:%M%p").timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _on_one_line(text: str) -> str:
    return " ".join(terminal_safe(text).split())


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else terminal_safe(str(error))
