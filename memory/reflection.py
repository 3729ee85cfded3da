"""What reflection works on and what it keeps: episodes gathered since the last time, and conclusions that hold."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rpla.core.ids import new_id
from rpla.memory.embedder import Vectors
from rpla.memory.episodic import EpisodicMemory, Viewpoint
from rpla.memory.memories import Memory
from rpla.memory.store import now
from rpla.memory.words import words_of

LONGEST_INSIGHT = 200
"""Most characters of an insight."""
_GATHERED = 30
"""How many of the newest episodes are looked at."""
_ECHO_WORDS = 0.7
_ECHO_COSINE = 0.85
"""From these on an insight says again what one episode says."""
_SAME_WORDS = 0.7
_SAME_COSINE = 0.9
"""From these on two insights are one."""
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)]*\s+(?=[\"'“‘(]*[A-Z\d])|[。！？](?=.)")
_ABBREVIATED = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Sgt|Lt|vs|No|[A-Z])\.$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What there is to reflect on."""

    episodes: tuple[Memory, ...]
    """The newest that are seen from the viewpoint, oldest first."""
    importance: float
    """Of all that are new and seen."""
    since: int
    up_to: int
    """Numbers of the newest memories reflected on: the last time, and by this."""


def gather_episodes(memory: EpisodicMemory, viewpoint: Viewpoint) -> Gathered:
    """The episodes since the last reflection that are seen from there."""
    since = memory.store.reflected(memory.user, memory.character)
    rows = memory.store.rows(memory.user, memory.character, after=since)
    seen = {one.id for one in memory.all(viewpoint)}
    episodes = [row.memory for row in rows if row.memory.kind == "episode" and row.memory.id in seen]
    return Gathered(
        episodes=tuple(episodes[-_GATHERED:]),
        importance=sum(episode.importance for episode in episodes),
        since=since,
        up_to=max((row.num for row in rows), default=since),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What the model says follows from some episodes."""

    text: str
    cited: tuple[Memory, ...]
    shown: tuple[Memory, ...]
    """The episodes that it could cite."""


def sift(
    conclusions: Sequence[Conclusion],
    memory: EpisodicMemory,
    viewpoint: Viewpoint,
    *,
    names: Sequence[str] = (),
    refused: Sequence[str] = (),
) -> tuple[list[Memory], list[Vectors | None]]:
    """The conclusions that hold, as insights, with their vectors where there is an embedder.

    Each is one sentence, stands on two episodes or more, among them the one that it is most like, says what none of the
    episodes says by itself, and is not known yet. `names` of user and character do not tell two sentences apart. What
    is like one of `refused` is not kept.
    """
    embed = memory.embedder.ready if memory.embedder is not None else None
    common = {word for name in names for word in words_of(name)}
    visible = {one.id: one for one in memory.all(viewpoint)}
    known = [one for one in visible.values() if one.kind == "insight"]
    barred = [frozenset(words_of(one)) for one in refused]
    taken: list[tuple[frozenset[str], Vectors | None]] = []
    insights: list[Memory] = []
    for conclusion in conclusions:
        text = one_sentence(conclusion.text)
        evidence = list(dict.fromkeys(one.id for one in conclusion.cited if one.id in visible))
        if not text or len(evidence) < 2:
            continue
        words = frozenset(words_of(text)) - common
        if not words or any(_alike(words, one) for one in barred):
            continue
        vector = embed([text])[0] if embed is not None else None
        if not _about(memory, words, vector, conclusion):
            continue
        if any(
            _covers(frozenset(words_of(one.text)), words) or _likeness(memory, one, vector) >= _ECHO_COSINE
            for one in conclusion.shown
        ):
            continue
        if any(
            _alike(frozenset(words_of(one.text)) - common, words) or _likeness(memory, one, vector) >= _SAME_COSINE
            for one in known
        ):
            continue
        if any(
            _alike(others, words) or (vector is not None and its is not None and float(vector @ its) >= _SAME_COSINE)
            for others, its in taken
        ):
            continue
        taken.append((words, vector))
        moment = now()
        insights.append(
            Memory(
                id=new_id(),
                user=memory.user,
                character=memory.character,
                kind="insight",
                text=text,
                provenance="inferred",
                created=moment,
                renewed=moment,
                importance=max(visible[id].importance for id in evidence),
                evidence=tuple(evidence),
            )
        )
    return insights, [vector for _, vector in taken]


def keep_insights(
    memory: EpisodicMemory, insights: Sequence[Memory], vectors: Sequence[Vectors | None], gathered: Gathered
) -> list[Memory]:
    """Keep the insights and mark what was reflected on, in one transaction; those that are kept.

    A kill before it loses nothing: the next start reflects again. After it nothing is done twice, and nothing is kept
    where another process reflected first. Evidence that was forgotten or superseded meanwhile does not count.
    """
    store, scope = memory.store, (memory.user, memory.character)
    with memory.transaction():
        if store.reflected(*scope) != gathered.since:
            return []
        standing: list[tuple[Memory, Vectors | None]] = []
        for insight, vector in zip(insights, vectors, strict=True):
            live = tuple(one.id for one in store.find(insight.evidence) if one.superseded_by is None)
            if len(live) >= 2:
                standing.append((replace(insight, evidence=live), vector))
        kept = memory.add([insight for insight, _ in standing], [vector for _, vector in standing])
        store.mark_reflected(*scope, gathered.up_to)
    return kept


def one_sentence(text: str) -> str:
    """The text as one line; empty where it is not one sentence of a length to be kept, or cannot be stored."""
    text = " ".join(text.split()).strip('"“” ')
    if not words_of(text) or len(text) > LONGEST_INSIGHT:
        return ""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return ""
    ends = [match for match in _SENTENCE_END.finditer(text) if not _ABBREVIATED.search(text[: match.start() + 1])]
    return "" if ends or text.endswith(("?", "？")) else text


def _covers(episode: frozenset[str], words: frozenset[str]) -> bool:
    return len(words & episode) >= _ECHO_WORDS * len(words)


def _about(memory: EpisodicMemory, words: frozenset[str], vector: Vectors | None, conclusion: Conclusion) -> bool:
    """Whether it cites the episode that it is most like: one that does not was drawn from others than it says."""

    likenesses = [memory.likeness(one.id, vector) if vector is not None else None for one in conclusion.shown]
    if None in likenesses:
        likenesses = [float(len(words.intersection(words_of(one.text)))) for one in conclusion.shown]
    best = max(likeness for likeness in likenesses if likeness is not None)
    return any(one in conclusion.cited for one, like in zip(conclusion.shown, likenesses, strict=True) if like == best)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _SAME_WORDS * len(one | other)


def _likeness(memory: EpisodicMemory, one: Memory, vector: Vectors | None) -> float:
    return (memory.likeness(one.id, vector) or 0.0) if vector is not None else 0.0
