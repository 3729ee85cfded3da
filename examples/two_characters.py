"""An app with two characters: they meet, and each remembers its own side of the conversation.

python examples/two_characters.py ada-lovelace sherlock-holmes 3
"""

import sys

from rpla import Agent, Persona


def meet(first: str, second: str, exchanges: int) -> None:
    """Let two characters talk; each is the user of the other."""
    with Agent(first, user="two-characters") as one, Agent(second, user="two-characters") as other:
        one.set_persona(Persona(name=other.character.name, description=other.character.line))
        other.set_persona(Persona(name=one.character.name, description=one.character.line))
        one.new_chat(greeting=None)
        other.new_chat(greeting=None)
        said = f"Good evening. I am {other.character.name}."
        print(f"{other.character.name}: {said}")
        for _ in range(exchanges):
            for speaker in (one, other):
                said = speaker.say(said).text
                print(f"{speaker.character.name}: {said}")


if __name__ == "__main__":
    meet(sys.argv[1], sys.argv[2], int(sys.argv[3]))
