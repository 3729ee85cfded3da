"""The line chat: reads what the user types, streams what the character says."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING

from rpla.cli.output import say
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TextDelta, TurnCommitted, TurnEvent, TurnReplaced
from rpla.core.loop import background_loop, iterate_sync, run_sync
from rpla.core.terminal import TerminalSafeStream, terminal_safe

if TYPE_CHECKING:
    from rpla.agent import Agent
    from rpla.core.chatlog import Turn

_SHOWN_TURNS = 4


class Conversation:
    """One sitting with one agent. Slash commands are in `rpla.cli.commands`."""

    def __init__(self, agent: "Agent") -> None:
        self.agent = agent
        self.ended = False
        self.listed: tuple[str, ...] = ()
        """Ids of the memories that were shown last, in the order of their numbers."""
        # Where the output is read by a program, a reply is printed once it is whole: it may still be replaced.
        self._streams = sys.stdout.isatty()

    def answer_lines(self, lines: Iterable[str]) -> None:
        """Answer each line on stdout."""
        for line in lines:
            if line.strip() and not self.ended:
                self.take(line.strip())

    def talk(self) -> None:
        """Prompt, answer, and so on until the user leaves."""
        self._prepare_line_editing()
        # The model reads the card while the user reads the greeting; what fails there fails again, and is told, when
        # the user speaks.
        asyncio.run_coroutine_threadsafe(self.agent.chat.warm(), background_loop())
        say(f"{self.agent.character.name}, by {self.agent.model_name}. /help shows the commands, Ctrl-D leaves.\n")
        self.show_recent()
        if (head := self.agent.chat.head) and head.role == "user":
            say("Your last message has no answer yet: /regenerate asks for one.")
        while not self.ended:
            try:
                line = input(f"{terminal_safe(self.agent.persona.name)}: ").strip()
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                print()
                continue
            if not line:
                continue
            try:
                self.take(line)
            except RplaError as error:
                say(f"\n{error}")
            except KeyboardInterrupt:
                say("\n[interrupted]")

    def take(self, line: str) -> None:
        """A message, or a slash command."""
        if line.startswith("/") and not line.startswith("//"):
            from rpla.cli.commands import run_command

            run_command(self, line)
        else:
            self.play(self.agent.chat.stream(line.removeprefix("/") if line.startswith("//") else line))

    def play(self, turn: AsyncGenerator[TurnEvent, None]) -> None:
        """Print a turn as it happens; Ctrl-C stops it and keeps what was said."""
        name = terminal_safe(self.agent.character.spoken_name)
        safe = TerminalSafeStream()
        if self._streams:
            print(f"\n{name}: ", end="", flush=True)
        with contextlib.closing(iterate_sync(turn)) as events:
            try:
                for event in events:
                    match event:
                        case TextDelta(text) if self._streams:
                            print(safe.feed(text), end="", flush=True)
                        case TurnReplaced(text, reason) if self._streams:
                            print(safe.close())
                            if reason != "checked":
                                say(f"[{reason}: said again]")
                            safe = TerminalSafeStream()
                            print(f"{name}: {terminal_safe(text)}", end="", flush=True)
                        case Notice(text):
                            say(f"[{text}]")
                        case TurnCommitted(turn=said):
                            print(safe.close() + "\n" if self._streams else terminal_safe(said.text), flush=True)
            except KeyboardInterrupt:
                print("\n", flush=True)
                say("[stopped; what was said so far is kept]")

    def show(self, turn: "Turn") -> None:
        """Print one turn with its speaker."""
        speaker = self.agent.persona.name if turn.role == "user" else self.agent.character.spoken_name
        print(f"{terminal_safe(speaker)}: {terminal_safe(turn.text)}\n")

    def show_recent(self) -> None:
        """Print the newest turns of the open branch."""
        for turn in self.agent.chat.turns[-_SHOWN_TURNS:]:
            self.show(turn)

    def leave(self) -> None:
        """Remember what can be remembered at once; the rest is done at the next start."""
        run_sync(self.agent.chat.leave())

    def _prepare_line_editing(self) -> None:
        try:
            import readline
        except ImportError:  # not on every platform; input() works without
            return
        from rpla.cli.commands import COMMANDS

        history = self.agent.home.history
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        import atexit

        history.parent.mkdir(parents=True, exist_ok=True)
        atexit.register(readline.write_history_file, history)
        names = [f"/{name}" for name in COMMANDS]

        def complete(text: str, state: int) -> str | None:
            matches = [name for name in names if name.startswith(text)] if text.startswith("/") else []
            return matches[state] if state < len(matches) else None

        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
