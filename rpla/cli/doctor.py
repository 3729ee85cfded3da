"""`rpla doctor`: what is well, what is not, and mending the chat log."""

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from rpla.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from rpla.core.doctor import Finding
    from rpla.core.home import Home
    from rpla.core.snapshot import RestoreReport


def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Restore a damaged chat log; nothing is deleted.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check settings, chats, characters, models and packages. Exits with 1 where something needs to be done."""
    from dataclasses import asdict

    from rpla.core.doctor import examine
    from rpla.core.home import find_home
    from rpla.core.snapshot import restore
    from rpla.memory.store import MemoryStore

    home = find_home()
    findings = [*examine(home), _memory(home)]
    if mend:
        if any(finding.mendable for finding in findings):
            _tell(restore(home))
            if home.memory.exists():
                # The log's turns have other numbers now; what was remembered of them is kept, and the rest made up for.
                with contextlib.closing(MemoryStore(home.memory)) as store:
                    store.unmark()
            findings = [*examine(home), _memory(home)]
        else:
            say("There is nothing to mend in the chat log.")
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("", "area", "finding"), [("ok" if f.ok else "NO", f.area, f.text) for f in findings])
        for finding in findings:
            if finding.hint:
                say(f"{finding.area}: {finding.hint}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _memory(home: "Home") -> "Finding":
    from rpla.core.doctor import Finding
    from rpla.memory.doctor import soundness

    found = soundness(home)
    return Finding(area="memory", ok=found.ok, text=found.text, hint=found.hint)


def _tell(report: "RestoreReport") -> None:
    if report.snapshot:
        say(f"Restored the chats from {report.snapshot}.")
    else:
        say("There was no sound snapshot; the chats were put together from the damaged file alone.")
    for snapshot in report.unsound:
        say(f"{snapshot} is damaged too and was passed over.")
    if report.damaged:
        say(f"The damaged file is kept: {report.damaged}")
        say(f"Salvaged from it: {report.turns} turns and {report.chats} chats that the snapshot did not have.")
    if report.unread_turns or report.unread_chats:
        say(f"Could not be read: {report.unread_turns} turns and {report.unread_chats} chats.")
    if report.rejoined:
        say(f"{report.rejoined} turns lost the one before them; they follow what was said last before that.")
    for chat in report.ownerless:
        say(f"Of one chat it is not known whose it is; see it with: rpla chats show {chat[:8]}")
