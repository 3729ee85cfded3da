"""The tree of one chat's turns: what was said, and moving about in it."""

from datetime import datetime
from typing import Any

from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.macros import Macros
from rpla.core.prompt import Item, Section


class ChatTree:
    """A branch of the tree is open at any time; its last turn is the head. No move makes the tree smaller."""

    def __init__(self, log: ChatLog, info: ChatInfo, character: Character, persona: Persona) -> None:
        self.id = info.id
        self.character, self.persona = character, persona
        self._log, self._info = log, info
        self._branch: list[Turn] = log.branch(info.head)
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
        return [
            Section(
                name=name,
                text="",
                tokens=tokens,
                source=source,
                items=tuple(Item(*item) for items in more for item in items),
            )
            for name, tokens, source, *more in sections
        ]

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
        following = [
            (later.role, later.text, {**_lasting(later), "same": later.meta.get("same", later.id)})
            for later in self._branch[place + 1 :]
        ]
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

    @property
    def _macros(self) -> Macros:
        started = datetime.fromtimestamp(self._info.created)
        return Macros(char=self.character.spoken_name, user=self.persona.name, seed=self.id, started=started)

    def _show(self, branch: list[Turn]) -> None:
        """Another branch is open."""
        self._branch = branch

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


def _lasting(turn: Turn) -> dict[str, Any]:
    """What of a turn's meta still holds when its text is said again elsewhere."""
    return {key: value for key, value in turn.meta.items() if key in ("greeting",)}
