"""The slash commands of the line chat."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rpla.cli.output import date, excerpt, print_table, say
from rpla.core.errors import RplaError
from rpla.core.nearest import nearest_hint
from rpla.core.terminal import terminal_safe

if TYPE_CHECKING:
    from rpla.cli.conversation import Conversation
    from rpla.core.chatlog import Turn


def run_command(conversation: "Conversation", line: str) -> None:
    """Run a line such as ``/edit 3 New text``. Raises RplaError that offers the nearest command for an unknown one."""
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise RplaError(f"Unknown command /{name}.", nearest_hint(f"/{name}", [f"/{known}" for known in COMMANDS]))
    COMMANDS[name](conversation, rest.strip())


def show_help(conversation: "Conversation", rest: str) -> None:
    """List the commands."""
    rows = [(f"/{name}", command.__doc__ or "") for name, command in COMMANDS.items()]
    print_table(("command", "what it does"), rows)
    say("A message that begins with a slash: type two.")


def regenerate(conversation: "Conversation", rest: str) -> None:
    """Have the last reply said anew; the old one stays as a swipe."""
    conversation.play(conversation.agent.chat.regenerate())


def extend(conversation: "Conversation", rest: str) -> None:
    """Let the character go on with its last reply."""
    conversation.play(conversation.agent.chat.extend())


def swipe(conversation: "Conversation", rest: str) -> None:
    """Next alternative of the last reply or greeting; /swipe back for the previous."""
    turn = conversation.agent.chat.swipe(-1 if rest in ("back", "prev", "-1") else 1)
    if turn is None:
        say("There is no other reply yet: /regenerate makes one.")
    else:
        conversation.show(turn)


def edit(conversation: "Conversation", rest: str) -> None:
    """/edit NUMBER TEXT puts another text in a turn's place; /turns shows the numbers."""
    number, _, text = rest.partition(" ")
    conversation.show(conversation.agent.chat.edit(_turn(conversation, number), text))


def turns(conversation: "Conversation", rest: str) -> None:
    """Show the whole branch, with numbers."""
    for number, turn in enumerate(conversation.agent.chat.turns, 1):
        print(f"{number}. ", end="")
        conversation.show(turn)


def branch(conversation: "Conversation", rest: str) -> None:
    """List the branches; /branch NUMBER opens one; /branch at NUMBER begins one after that turn."""
    chat = conversation.agent.chat
    leaves = chat.branches()
    if rest.startswith("at "):
        chat.branch(_turn(conversation, rest.removeprefix("at ").strip()))
    elif rest:
        chat.branch(leaves[_number(rest, len(leaves)) - 1])
    else:
        head = chat.head
        rows = [
            (f"{number}{'*' if head and leaf.id == head.id else ''}", leaf.role, leaf.text[:80])
            for number, leaf in enumerate(leaves, 1)
        ]
        print_table(("branch", "by", "ends with"), rows)
        return
    conversation.show_recent()


def rewind(conversation: "Conversation", rest: str) -> None:
    """Go back before your last message, or /rewind NUMBER messages; nothing is lost."""
    conversation.agent.chat.rewind(_number(rest, 10**6) if rest else 1)
    conversation.show_recent()


def why(conversation: "Conversation", rest: str) -> None:
    """Show what the last reply stood on: the parts of its prompt, and what was recalled, with scores and reasons."""
    sections = conversation.agent.chat.why()
    if not sections:
        say("The last reply has no prompt on record.")
        return
    rows = [(section.name, section.tokens, section.source) for section in sections]
    print_table(("section", "tokens", "source"), [*rows, ("all", sum(s.tokens for s in sections), "")])
    listed: list[str] = []
    for section in sections:
        if not section.items:
            continue
        texts = conversation.agent.texts_of(section)
        print(f"\n{terminal_safe(section.name)}:")
        for item in section.items:
            number = ""
            if section.name == "memories":
                listed.append(item.id)
                number = f"{len(listed)}."
            # Lore is in the card, and its source above names the entries.
            text = excerpt(texts.get(item.id, "")) or ("" if section.name == "lore" else "[forgotten since]")
            print(terminal_safe(f"{number:>4} {item.score:.2f}  {text}  ({item.reason})"))
    if listed:
        conversation.listed = tuple(listed)
        say("/forget NUMBER takes a memory away for good.")


def remember(conversation: "Conversation", rest: str) -> None:
    """/remember TEXT has the character remember it from here on; rewinding the chat undoes it."""
    memory = conversation.agent.remember(rest)
    say(f"{conversation.agent.character.spoken_name} remembers: {excerpt(memory.text)}")


def memories(conversation: "Conversation", rest: str) -> None:
    """/memories WORDS shows what comes to mind at them; without words, all that can be recalled, the newest first."""
    found = conversation.agent.memories(rest)
    conversation.listed = tuple(one.memory.id for one in found)
    if not found:
        say("Nothing comes to mind.")
        return
    head = ("", "score", "why", "text") if rest else ("", "when", "matters", "text")
    rows = [
        (number, f"{one.score:.2f}", one.reason, excerpt(one.memory.text))
        if rest
        else (number, date(one.memory.created), f"{one.importance:.2f}", excerpt(one.memory.text))
        for number, one in enumerate(found, 1)
    ]
    print_table(head, rows)
    say("/forget NUMBER takes one away for good.")


def forget(conversation: "Conversation", rest: str) -> None:
    """/forget NUMBER takes a memory from the last /memories or /why away, for good; what was said stays."""
    if not conversation.listed:
        raise RplaError("No memories were listed yet.", "/memories or /why shows them with numbers.")
    id = conversation.listed[_number(rest, len(conversation.listed)) - 1]
    fell = len(conversation.agent.forget([id])) - 1
    also = f", and {fell} that stood on it" if fell else ""
    say(f"Forgotten for good{also}. `rpla memory erase` takes what was said, too.")


def persona(conversation: "Conversation", rest: str) -> None:
    """/persona NAME: DESCRIPTION says who you are from now on."""
    from rpla.core.character import Persona

    if not rest:
        mine = conversation.agent.persona
        print(terminal_safe(f"{mine.name}: {mine.description}"))
        return
    name, _, description = rest.partition(":")
    conversation.agent.set_persona(Persona(name=name.strip(), description=description.strip()))
    say(f"You are now {name.strip()}.")


def model(conversation: "Conversation", rest: str) -> None:
    """/model NAME talks on with another model; without a name, says which it is."""
    if rest:
        conversation.agent.set_model(rest)
    say(f"The model is {conversation.agent.model_name}.")


def new(conversation: "Conversation", rest: str) -> None:
    """Begin a new chat; /new NUMBER with that greeting."""
    greetings = len(conversation.agent.character.greetings)
    conversation.agent.new_chat(greeting=_number(rest, greetings) - 1 if rest else 0)
    conversation.show_recent()


def chats(conversation: "Conversation", rest: str) -> None:
    """List your chats with this character; /open NUMBER goes on with one."""
    rows = [
        (f"{number}{'*' if info.id == conversation.agent.chat.id else ''}", info.turns, info.title)
        for number, info in enumerate(conversation.agent.chats(), 1)
    ]
    print_table(("chat", "turns", "title"), rows)


def open_chat(conversation: "Conversation", rest: str) -> None:
    """/open NUMBER goes on with another chat from /chats."""
    infos = conversation.agent.chats()
    conversation.agent.open_chat(infos[_number(rest, len(infos)) - 1].id)
    conversation.show_recent()


def rename(conversation: "Conversation", rest: str) -> None:
    """/rename TITLE gives this chat a title."""
    conversation.agent.chat.rename(rest)


def delete(conversation: "Conversation", rest: str) -> None:
    """Put this chat away; /undo brings it back."""
    conversation.agent.chat.delete()
    conversation.agent.new_chat()
    say("That chat is put away; this is a new one. /undo brings the old one back.")


def undo(conversation: "Conversation", rest: str) -> None:
    """Bring back the chat that was put away last."""
    gone = conversation.agent.chats(deleted=True)
    if not gone:
        raise RplaError("No chat was put away.")
    conversation.agent.open_chat(gone[0].id).undelete()
    conversation.show_recent()


def search(conversation: "Conversation", rest: str) -> None:
    """/search WORDS finds turns in all your chats with this character."""
    hits = conversation.agent.search(rest)
    for hit in hits:
        print(terminal_safe(f"{hit.chat.title}: ").replace("\n", " "), end="")
        conversation.show(hit.turn)
    if not hits:
        say("Nothing found.")


def export(conversation: "Conversation", rest: str) -> None:
    """/export FILE writes this chat as .md, .json or SillyTavern's .jsonl."""
    path = Path(rest).expanduser()
    formats = {".md": "md", ".json": "json", ".jsonl": "sillytavern"}
    if path.suffix not in formats:
        raise RplaError("Say which file: /export chat.md, chat.json or chat.jsonl.")
    text = conversation.agent.export_chat(formats[path.suffix])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise RplaError(f"{path} could not be written: {error}.", "Choose another name or folder.") from error
    say(f"Wrote {path}.")


def leave(conversation: "Conversation", rest: str) -> None:
    """Leave; everything is saved."""
    conversation.ended = True


COMMANDS: dict[str, Callable[["Conversation", str], None]] = {
    "help": show_help,
    "regenerate": regenerate,
    "swipe": swipe,
    "continue": extend,
    "edit": edit,
    "turns": turns,
    "branch": branch,
    "rewind": rewind,
    "why": why,
    "remember": remember,
    "memories": memories,
    "forget": forget,
    "persona": persona,
    "model": model,
    "new": new,
    "chats": chats,
    "open": open_chat,
    "rename": rename,
    "delete": delete,
    "undo": undo,
    "search": search,
    "export": export,
    "quit": leave,
}


def _number(text: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise RplaError(f"{text or 'Nothing'} is not a number from 1 to {most}.")
    return int(text)


def _turn(conversation: "Conversation", text: str) -> "Turn":
    branch = conversation.agent.chat.turns
    return branch[_number(text, len(branch)) - 1]
