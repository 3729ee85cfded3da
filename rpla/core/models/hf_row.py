"""One request while it is served: how its tokens are drawn, and how they become text."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rpla.core.errors import RplaError
from rpla.core.models.base import Piece, TokenLogprob, Usage

_CANDIDATES = 256
"""How many of the likeliest tokens are sorted first: a nucleus is nearly always smaller, and a whole sort is slow."""
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request's tokens are drawn: the penalty, then the temperature, then the nucleus."""

    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that the prompt or the reply already has."""
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A reply to generate."""

    ids: Sequence[int]
    """The prompt's tokens."""
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    deliver: Callable[[Piece | RplaError], None]
    """Called in the worker's thread; must not block. Raises RuntimeError where nobody listens any more."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def send(self, item: Piece | RplaError) -> None:
        """Deliver, or cancel the request where nobody listens any more."""
        try:
            self.deliver(item)
        except RuntimeError:
            self.cancelled.set()


class TextStream:
    """Text from tokens as they arrive: whole characters only, and never a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stops = [text for text in stop if text]
        self._ids: list[int] = []
        self._first = self._read = 0
        self._held = ""
        self.sent = 0
        """Characters let out so far."""
        self.stopped = False
        """Whether a stop string has come up."""

    @property
    def length(self) -> int:
        """Characters so far, with those held back because they may begin a stop string."""
        return self.sent + len(self._held)

    def add(self, token: int, last: bool = False) -> str:
        """The text that a token brings to light; after the `last` one nothing is held back."""
        self._ids.append(token)
        return self._let_out(last)

    def end(self) -> str:
        """What was held back, for a reply that ends without a further token of text."""
        return self._let_out(True)

    def _let_out(self, last: bool) -> str:
        # A token's text depends on its neighbours (a leading space, the other half of a character), so tokens are
        # decoded together with those before them, and only what that adds is new.
        before = self._decode(self._ids[self._first : self._read])
        text = self._decode(self._ids[self._first :])
        if last:
            text = text.rstrip("\ufffd")
        if len(text) > len(before) and not text.endswith("\ufffd"):
            self._held += text[len(before) :]
            self._first, self._read = self._read, len(self._ids)
        cuts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(cuts)
        cut = min(cuts) if cuts else len(self._held) - (0 if last else self._may_stop())
        out, self._held = self._held[:cut], "" if cuts else self._held[cut:]
        self.sent += len(out)
        return out

    def _may_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops), default=0))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)


class Row:
    """One request while it is being served."""

    def __init__(self, request: Request, decode: Callable[[Sequence[int]], str], ends: frozenset[int]) -> None:
        self.request = request
        self.length = len(request.ids)
        """Tokens in the cache."""
        self.token = 0
        """The last one drawn, which is not in the cache yet."""
        self._count = 0
        self._ends = ends
        self._decode = decode
        self._text = TextStream(decode, request.stop)
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self._generator = torch.Generator()
        self._seen = set(request.ids) if request.sampling.repetition_penalty != 1 else set()
        if request.sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.sampling.seed)

    def advance(self, logits: Tensor) -> bool:
        """Draw the next token, send what it brings, and tell whether the reply goes on. `logits`: (vocabulary,)."""
        request = self.request
        self.token = token = self._draw(logits)
        self._count += 1
        ended, full = token in self._ends, self._count >= request.max_tokens
        if self._seen:
            self._seen.add(token)
        if request.logprobs is not None and not ended:
            self._logprobs.append((self._text.length, self._logprob(logits, token, request.logprobs)))
        text = self._text.end() if ended else self._text.add(token, last=full)
        finish = "stop" if ended or self._text.stopped else "length" if full else ""
        self._send(text, finish)
        return not (finish or request.cancelled.is_set())

    def _draw(self, logits: Tensor) -> int:
        sampling = self.request.sampling
        if self._seen:
            seen = torch.tensor(list(self._seen), device=logits.device)
            old, penalty = logits[seen], sampling.repetition_penalty
            logits = logits.index_put((seen,), torch.where(old < 0, old * penalty, old / penalty))
        if sampling.temperature < _GREEDY_BELOW:
            return int(logits.argmax())
        weights, tokens = _nucleus((logits / sampling.temperature).softmax(-1), sampling.top_p, sampling.min_p)
        sums = weights.cumsum(0)
        # One number a token, turned into the token by the inverse of the distribution: the same on every device.
        point = torch.rand(1, generator=self._generator).to(sums.device) * sums[-1]
        place = int(torch.searchsorted(sums, point, right=True).clamp(max=len(sums) - 1))
        return place if tokens is None else int(tokens[place])

    def _logprob(self, logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(alternatives, len(logprobs)))
        top = tuple((self._decode([other]), value) for other, value in zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogprob(self._decode([token]), float(logprobs[token]), top)

    def _send(self, text: str, finish: str) -> None:
        ready: list[TokenLogprob] = []
        whole = finish and not self._text.stopped
        while self._logprobs and (whole or self._logprobs[0][0] < self._text.sent):
            ready.append(self._logprobs.popleft()[1])
        usage = Usage(prompt_tokens=len(self.request.ids), completion_tokens=self._count) if finish else None
        if text or ready or finish:
            self.request.send(Piece(text=text, finish=finish, usage=usage, logprobs=tuple(ready)))


def _nucleus(weights: Tensor, top_p: float, min_p: float) -> tuple[Tensor, Tensor | None]:
    """The fewest likeliest tokens that have `top_p` together, less those below `min_p` of the best one.

    Gives their probabilities, best first, and their ids; or all probabilities and None where nothing is to be cut.
    """
    if top_p >= 1 and min_p <= 0:
        return weights, None
    count = min(_CANDIDATES, len(weights))
    while True:
        best, tokens = weights.topk(count)
        keep = (best.cumsum(0) - best < top_p) & (best >= min_p * best[0])
        if count == len(weights) or not keep[-1]:
            keep[0] = True
            return best[keep], tokens[keep]
        count = len(weights)
