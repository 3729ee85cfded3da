"""`rpla chat`: line by line, for terminals, pipes and screen readers alike."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

_DEFAULT_CHARACTER = "ada-lovelace"


def chat(
    character: Annotated[str, typer.Argument(help="Who to talk with; `rpla characters list` shows them.")] = "",
    model: Annotated[str | None, typer.Option(help="auto, llamacpp:NAME, hf:FOLDER, openai:NAME.")] = None,
    alignment: Annotated[
        str | None, typer.Option(help="none, bare, icl, icl-few, icl-few-bm25, rag, card+rag, full.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whose chats these are.")] = None,
    persona: Annotated[str | None, typer.Option(help="The name characters call you by.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a new chat instead of going on with the last.")] = False,
    chat_id: Annotated[str, typer.Option("--chat", help="Go on with this chat, from `rpla chats list`.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 is the same reply every time.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest reply, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fix the chance in replies.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Show a reply only once it is checked.")] = None,
) -> None:
    """Talk with a character. `/help` in the chat lists what else you can do.

    Where input is a pipe, each line is answered on stdout, in a new chat, and nothing else is printed there.
    """
    from rpla.agent import Agent
    from rpla.cli.conversation import Conversation
    from rpla.core.home import find_home
    from rpla.core.settings import load_settings

    flags = {
        "model": model,
        "user": user,
        "persona.name": persona,
        "chat.alignment": alignment,
        "chat.strict": strict,
        "sampling.temperature": temperature,
        "sampling.max_tokens": max_tokens,
        "sampling.seed": seed,
    }
    # A byte that is no text becomes a question mark, not a crash.
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    home = find_home()
    agent = Agent(character or _chosen(home.root), home=home.root, settings=load_settings(home, flags))
    with agent:
        if chat_id:
            agent.open_chat(chat_id)
        elif new or not sys.stdin.isatty():
            agent.new_chat()
        conversation = Conversation(agent)
        if sys.stdin.isatty():
            conversation.talk()
        else:
            conversation.answer_lines(sys.stdin)
        conversation.leave()


def _chosen(home: Path) -> str:
    if not sys.stdin.isatty():
        return _DEFAULT_CHARACTER
    from rpla.cli.output import say
    from rpla.core.home import Home
    from rpla.core.library import CharacterLibrary

    entries = [entry for entry in CharacterLibrary(Home(home)).entries() if not entry.broken]
    for number, entry in enumerate(entries, 1):
        say(f"{number:3}. {entry.name}: {entry.line}")
    say("Who would you like to talk with? (a number or a name; Enter for the first)")
    answer = input("> ").strip() or "1"
    return entries[int(answer) - 1].slug if answer.isdecimal() and 0 < int(answer) <= len(entries) else answer
