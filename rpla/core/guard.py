"""Watches a reply as it streams: does it speak for the user, or leave the role?"""

import re
from typing import Literal

from rpla.core.character import Character, Persona

Breach = Literal["", "speaks for the user", "leaves the role", "says nothing"]

_LEAVES_ROLE = re.compile(
    r"\bas an? (?:\w+ )?(?:ai\b|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)"
    r"|\bi(?:'|’)?(?: a)?m (?:just |only |simply |actually |really )*an? (?:\w+ ){0,2}"
    r"(?:ai\b|artificial intelligence|language model|virtual assistant|digital assistant|chatbot|computer program)"
    r"|\bi(?:'|’)?(?: a)?m (?:chatgpt|qwen|claude|gemini|llama|smollm\w*)(?=[,.!;]|\s+(?:and|by|from|made|here)\b)"
    r"|\bi (?:was|have been|am) (?:created|trained|developed|made|built|programmed) by (?:openai|anthropic|google|meta"
    r"|alibaba(?: cloud)?|hugging ?face|mistral)"
    r"|\bhow (?:can|may) i assist you today\b"
    r"|\bmy (?:training data|knowledge cutoff|programming) ",
    re.IGNORECASE,
)
_ARTIFICIAL = re.compile(
    r"\b(?:AI|A\.I\.|(?i:artificial intelligence|robot|android|automaton|chatbot|language model|ship's computer))\b"
)
_LOOK_BACK = 120
"""Longer than any phrase that is looked for, so that one cut in two by a piece's end is found."""
_STRIDE = 32
"""How many characters may go by unsearched."""


def user_labels(character: Character, persona: Persona) -> list[str]:
    """The names under which a reply would speak for the user; none of them is the character's own."""
    own = {character.name.casefold(), character.spoken_name.casefold()}
    return [name for name in dict.fromkeys((persona.name, "User")) if name.casefold() not in own]


class Guard:
    """Fed a reply piece by piece; `breach` says what is wrong with it, and `kept` is the part before that."""

    def __init__(self, character: Character, persona: Persona, *, role: bool = True) -> None:
        names = [*user_labels(character, persona), "{{user}}", "Human"]
        labels = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._label = re.compile(
            rf"^[ \t*_>]*(?:{labels})[ \t*_]*:|<\|im_(?:start|end)\|>", re.IGNORECASE | re.MULTILINE
        )
        # A character that is a machine may say so.
        self._watch_role = role and not _ARTIFICIAL.search(f"{character.description} {' '.join(character.tags)}")
        self._searched = 0
        self.text = ""
        self.breach: Breach = ""
        self.kept = ""

    def feed(self, piece: str) -> None:
        """Take in the next piece of the reply; once there is a breach, what follows is ignored."""
        if self.breach:
            return
        self.text += piece
        self.kept = self.text
        # Labels end in one of these; for the rest it is enough to look every few words.
        if ":" in piece or ">" in piece or len(self.text) - self._searched >= _STRIDE:
            self._search()

    def finish(self) -> None:
        """The reply is whole."""
        if not self.breach:
            self._search()
        self.kept = self.kept.strip()
        if not self.breach and not self.kept:
            self.breach = "says nothing"

    def _search(self) -> None:
        back = max(0, self._searched - _LOOK_BACK)
        if label := self._label.search(self.text, self.text.rfind("\n", 0, back) + 1):
            self.breach, self.kept = "speaks for the user", self.text[: label.start()].rstrip()
        elif self._watch_role and (left := _LEAVES_ROLE.search(self.text, back)):
            self.breach, self.kept = "leaves the role", self.text[: left.start()].rstrip()
        self._searched = len(self.text)
