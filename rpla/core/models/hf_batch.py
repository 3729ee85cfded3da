"""Generation and scoring in batches: a request joins the batch that is running, and leaves it when it is done."""

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rpla.core.errors import RplaError
from rpla.core.models.base import Score
from rpla.core.models.hf_row import Request, Row

_GATHER_S = 0.005
"""How long an idle worker waits for company, since requests made together do not arrive in one instant."""
_CPU_CHUNK, _GPU_CHUNK = 1024, 4096
"""Prompt tokens read at a time, over all rows: while they are read nobody gets a token, and nothing is cancelled."""
_AHEAD = 64
"""Tokens that a cache has room for before it must be copied."""
_EXIT_S = 5.0

_log = logging.getLogger(__name__)
_busy: weakref.WeakSet["Batcher"] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scoring:
    """Text to score: the log-likelihood of ``ids[start:]`` given what precedes it; `start` is at least 1."""

    ids: Sequence[int]
    start: int
    result: Future[Score] = field(default_factory=Future)


Job = TypeVar("Job", Request, Scoring)


class _Layer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, in room made ahead.

    To copy all of them for each token, as transformers does, takes a fifth of the time where 24 rows have 1,500 tokens.
    """

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor] | None = None
    """What `keys` and `values` are the beginnings of; None where they stand alone."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append states of shape (rows, heads, tokens, size); gives all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < end:
            old = (self.keys, self.values) if start else (key_states[..., :0, :], value_states[..., :0, :])
            self._rooms = _roomy(old[0], end), _roomy(old[1], end)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def keep(self, rows: Tensor, first: int) -> None:
        """Drop all rows but these, and the columns before the first."""
        self.keys, self.values = (s[..., first:, :].index_select(0, rows) for s in (self.keys, self.values))
        self._rooms = None

    def join(self, other: "_Layer", width: int) -> None:
        """Add another's rows below, both padded on the left to `width` columns."""
        both = ((self.keys, other.keys), (self.values, other.values))
        self.keys, self.values = (torch.cat([F.pad(s, (0, 0, width - s.shape[-2], 0)) for s in pair]) for pair in both)
        self._rooms = None


def _roomy(states: Tensor, tokens: int) -> Tensor:
    room = states.new_empty(*states.shape[:2], tokens + _AHEAD, states.shape[-1])
    room[..., : states.shape[-2], :] = states
    return room


class _Batch:
    """Rows with their keys and values, padded on the left. `mask`: (rows, tokens), 0 where padded."""

    def __init__(self, rows: list[Row], cache: Any, mask: Tensor, joins: bool) -> None:
        self.rows, self.cache, self.mask, self._joins = rows, cache, mask, joins

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that no row needs any more."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not self.rows:
            return
        index = torch.tensor(kept, device=self.mask.device)
        self.mask = self.mask[index]
        if not self._joins:
            self.cache.reorder_cache(index)
            return
        spare = self.mask.shape[1] - max(row.length for row in self.rows)
        self.mask = self.mask[:, spare:]
        for layer in self.cache.layers:
            layer.keep(index, spare)

    def join(self, other: "_Batch") -> None:
        """Take in another batch's rows."""
        self.rows += other.rows
        width = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        for layer, added in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.join(added, width)


class Batcher:
    """Serves one model's requests, in a thread that lives while there is work.

    Rows whose layers keep plain keys and values join and leave at any token. Models with other caches (sliding windows,
    linear attention) are served in batches that none can join, though rows leave them.
    """

    def __init__(
        self, name: str, model: Any, decode: Callable[[Sequence[int]], str], ends: frozenset[int], size: int
    ) -> None:
        self._name, self._model, self._decode, self._ends, self._size = name, model, decode, ends, size
        self._joins = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        self._chunk = _CPU_CHUNK if model.device.type == "cpu" else _GPU_CHUNK
        self._requests: deque[Request] = deque()
        self._scorings: deque[Scoring] = deque()
        self._batch: _Batch | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Request | Scoring) -> None:
        """Queue a reply to generate, or text to score."""
        with self._lock:
            if isinstance(job, Request):
                self._requests.append(job)
            else:
                self._scorings.append(job)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="rpla-hf", daemon=True)
                self._thread.start()
                _busy.add(self)

    def close(self) -> None:
        """End the thread; work that is left stays undone."""
        self._closed = True
        if thread := self._thread:
            thread.join(_EXIT_S)

    @torch.inference_mode()
    def _work(self) -> None:
        time.sleep(_GATHER_S)
        while (taken := self._take()) is not None:
            requests, scorings = taken
            if scorings:
                self._score(scorings)
            if requests:
                self._admit(requests)
            if self._batch:
                self._step(self._batch)

    def _take(self) -> tuple[list[Request], list[Scoring]] | None:
        """What to begin beside the running batch; None where there is nothing at all to do, and the thread ends."""
        with self._lock:
            running = len(self._batch.rows) if self._batch else 0
            room = self._size - running if self._joins or not running else 0
            requests = self._group(self._requests, room, self._joins)
            scorings = self._group(self._scorings, self._size, True)
            if self._closed or not (running or requests or scorings):
                self._thread = None
                return None
            return requests, scorings

    def _group(self, queue: deque[Job], room: int, bounded: bool) -> list[Job]:
        """Those first in the queue; where `bounded`, as many as one chunk can read."""
        group: list[Job] = []
        widest = 0
        while queue and len(group) < room:
            widest = max(widest, len(queue[0].ids))
            if bounded and group and widest * (len(group) + 1) > self._chunk:
                break
            group.append(queue.popleft())
        return group

    def _admit(self, requests: list[Request]) -> None:
        """Read prompts, draw each one's first token, and put them into the batch."""
        requests = [request for request in requests if not request.cancelled.is_set()]
        if not requests:
            return
        try:
            ids, mask = self._padded([request.ids for request in requests])
            cache = self._cache()
            for _, chunk in self._read(ids, mask, cache, 1):
                logits = chunk
                if all(request.cancelled.is_set() for request in requests):
                    return
            rows = [Row(request, self._decode, self._ends) for request in requests]
            batch = _Batch(rows, cache, mask, self._joins)
            self._advance(batch, logits[:, -1])
            if self._batch and batch.rows:
                self._batch.join(batch)
            elif batch.rows:
                self._batch = batch
        except Exception as error:  # noqa: BLE001 - whatever went wrong, those who wait must hear of it
            self._fail(requests, error)

    def _step(self, batch: _Batch) -> None:
        """One more token for each row."""
        try:
            batch.keep([index for index, row in enumerate(batch.rows) if not row.request.cancelled.is_set()])
            if not batch.rows:
                self._batch = None
                return
            batch.mask = F.pad(batch.mask, (0, 1), value=1)
            logits = self._forward(
                torch.tensor([[row.token] for row in batch.rows], device=batch.mask.device),
                batch.mask,
                torch.tensor([[row.length] for row in batch.rows], device=batch.mask.device),
                batch.cache,
                1,
            )
            for row in batch.rows:
                row.length += 1
            self._advance(batch, logits[:, -1])
            if not batch.rows:
                self._batch = None
        except Exception as error:  # noqa: BLE001 - whatever went wrong, those who wait must hear of it
            self._batch = None
            self._fail([row.request for row in batch.rows], error)

    def _advance(self, batch: _Batch, logits: Tensor) -> None:
        going = [row.advance(scores) for row, scores in zip(batch.rows, logits.float(), strict=True)]
        batch.keep([index for index, goes in enumerate(going) if goes])

    def _score(self, scorings: list[Scoring]) -> None:
        scorings = [scoring for scoring in scorings if scoring.result.set_running_or_notify_cancel()]
        if not scorings:
            return
        try:
            ids, mask = self._padded([scoring.ids for scoring in scorings])
            counts = [len(scoring.ids) - scoring.start for scoring in scorings]
            totals = [0.0] * len(scorings)
            read = self._read(ids[:, :-1], mask[:, :-1], self._cache(), max(counts))
            for first, logits in read:
                for row, count in enumerate(counts):
                    begin = max(first, ids.shape[1] - 1 - count)
                    scores = logits[row, begin - first :].float()
                    targets = ids[row, begin + 1 : first + 1 + logits.shape[1]]
                    totals[row] -= float(F.cross_entropy(scores, targets, reduction="sum")) if len(targets) else 0.0
            for scoring, total, count in zip(scorings, totals, counts, strict=True):
                scoring.result.set_result(Score(total, count))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, those who wait must hear of it
            for scoring in scorings:
                if not scoring.result.done():
                    scoring.result.set_exception(self._error(error, len(scorings)))

    def _cache(self) -> Any:
        cache = DynamicCache(config=self._model.config)
        if self._joins:
            cache.layers = [_Layer() for _ in cache.layers]
        return cache

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, each (rows, tokens). Padding is on the left, so that all rows go on in the same column."""
        width = max(map(len, prompts))
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self._model.device), torch.tensor(mask, device=self._model.device)

    def _read(self, ids: Tensor, mask: Tensor, cache: Any, kept: int) -> Iterator[tuple[int, Tensor]]:
        """Read padded prompts into a cache, chunk by chunk, with the logits of (at least) the last `kept` columns.

        Yields the column where the logits begin, and the logits: (rows, columns, vocabulary).
        """
        rows, width = ids.shape
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # Linear attention cannot go on from a cache with more than one token, so only plain caches are read in chunks.
        size = max(1, self._chunk // rows) if self._joins else width
        for start in range(0, width, size):
            end = min(start + size, width)
            wanted = max(1, end - max(start, width - kept))
            logits = self._forward(ids[:, start:end], mask[:, :end], positions[:, start:end], cache, wanted)
            yield end - wanted, logits

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, wanted: int) -> Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        logits: Tensor = output.logits[:, -wanted:]
        return logits

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            request.send(self._error(error, len(requests)))

    def _error(self, error: Exception, count: int) -> RplaError:
        _log.debug("A batch of %d failed.", count, exc_info=error)
        said = (str(error).splitlines() or [""])[0]
        return RplaError(
            f"{self._name} failed on {count} request{'s' * (count > 1)} at once: {type(error).__name__}: {said}",
            "Where memory ran out, lower hf.batch or use shorter prompts.",
        )


@atexit.register
def _close_all() -> None:
    # A thread that is still inside torch while the interpreter goes away aborts the process.
    for batcher in list(_busy):
        batcher.close()
