"""Text to passages, by LlamaIndex's ingestion pipeline and sentence splitter. Nothing else of rpla knows LlamaIndex."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

from rpla.core.errors import MissingExtra
from rpla.core.models.base import estimate_tokens
from rpla.memory.readers import Part

_OVERLAP = 0.25
"""The share of a passage that the next one repeats: a thought that is cut in two stays whole in one of them."""
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|[。！？]+[」』”’）]*\s*|\n+""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A passage before it is stored."""

    text: str
    place: str
    heading: str
    fresh: int
    """Where in the text what the passage before did not hold begins."""
    reached: float
    """How far into the file it ends, from 0 to 1."""


def recipe(tokens: int, embedder: str) -> str:
    """Names how passages are cut: a file is cut anew where that has changed."""
    return f"1 {tokens} {'' if _tokenizer_file(embedder) is None else embedder}"


def split(parts: Sequence[Part], *, tokens: int, embedder: str, id: str) -> list[Chunk]:
    """The parts of a file as passages of at most so many tokens of the embedder; none reaches over two parts.

    Raises MissingExtra where LlamaIndex is not installed.
    """
    try:
        from llama_index.core.ingestion import IngestionPipeline
        from llama_index.core.node_parser import SentenceSplitter
        from llama_index.core.schema import Document, TextNode
    except ImportError as error:
        raise MissingExtra("Adding knowledge", "local") from error
    # Its defaults (NLTK's sentences, tiktoken's tokens) may download, and know English alone.
    splitter = SentenceSplitter(
        chunk_size=tokens,
        chunk_overlap=round(tokens * _OVERLAP),
        tokenizer=_tokenizer(embedder),
        chunking_tokenizer_fn=sentences,
        paragraph_separator="\n\n",
        include_metadata=False,  # else it prints warnings about metadata that there is none of
    )
    documents = [Document(text=part.text, id_=f"{id}/{number}", metadata={}) for number, part in enumerate(parts)]
    nodes = IngestionPipeline(transformations=[splitter], disable_cache=True).run(documents=documents)
    starts = [0, *accumulate(len(part.text) for part in parts)]
    whole = starts[-1] or 1
    chunks: list[Chunk] = []
    lines: dict[int, list[int]] = {}
    held = dict.fromkeys(range(len(parts)), 0)
    for node in nodes:
        assert isinstance(node, TextNode)
        number = int((node.ref_doc_id or "").rpartition("/")[2])
        part = parts[number]
        begin, end = node.start_char_idx or 0, node.end_char_idx or len(part.text)
        place = part.place
        if not place and part.first_line:
            breaks = lines.setdefault(number, [match.start() for match in re.finditer("\n", part.text)])
            first, last = (part.first_line + bisect_right(breaks, at) for at in (begin, end - 1))
            place = f"lines {first}-{last}" if first < last else f"line {first}"
            place = f"{part.heading.rpartition(' > ')[2]}, {place}" if part.heading else place
        chunks.append(
            Chunk(
                text=node.text,
                place=place,
                heading=part.heading,
                fresh=max(0, held[number] - begin),
                reached=(starts[number] + end) / whole,
            )
        )
        held[number] = end
    return chunks


def sentences(text: str) -> list[str]:
    """The text in sentences and lines, nothing lost: put together, they are the text."""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(ends) if begin < end]


def _tokenizer(embedder: str) -> Callable[[str], list[int]]:
    """The embedder's own, where it has one."""
    if (file := _tokenizer_file(embedder)) is None:
        return lambda text: [0] * estimate_tokens(text)
    return _opened(str(file))


def _tokenizer_file(embedder: str) -> Path | None:
    """Where the embedder of this name has its tokenizer; the model itself need not be loaded for it."""
    if embedder in ("", "hashing"):
        return None
    if embedder == "minilm":
        from rpla.memory.sentences import minilm_folder

        try:
            folder = minilm_folder()
        except MissingExtra:
            return None
    else:
        folder = Path(embedder)
    return file if (file := folder / "tokenizer.json").is_file() else None


@cache
def _opened(file: str) -> Callable[[str], list[int]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("Adding knowledge", "local") from error
    tokenizer = Tokenizer.from_file(file)
    # As stored, it cuts texts short and fills them up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
