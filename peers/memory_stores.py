"""What others keep memories in, each as its documentation shows it, behind one interface for `memory_compare.py`."""

# ruff: noqa: D102 - Peer says what the methods do

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"MEM0_TELEMETRY": "False", "ANONYMIZED_TELEMETRY": "False", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("MEM0_DIR", tempfile.mkdtemp(prefix="peers-mem0-"))  # it would write into the user's home
os.environ.setdefault("OPENAI_API_KEY", "not used: nothing here asks a language model")

import chromadb
import mem0
import numpy as np
from langgraph.store.base import BaseStore, PutOp
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.retrievers.bm25 import BM25Retriever
from llama_index.vector_stores.chroma import ChromaVectorStore
from numpy.typing import NDArray

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

DIMENSIONS = 384
_LEG = 20
"""How many each half of LlamaIndex's fusion finds, of which ten are kept."""


class Peer(ABC):
    """A memory of several characters."""

    @abstractmethod
    def __init__(self, folder: Path, embed: Embed) -> None:
        """Empty, in a folder of its own."""

    @abstractmethod
    def add(self, character: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Keep texts; durable once this returns, where it is durable at all."""

    @abstractmethod
    def search(self, character: str, query: str, limit: int) -> list[str]:
        """Ids of the best, best first."""

    def open(self, character: str) -> None:  # noqa: B027 - most have nothing to make
        """Make what must be there before a character's memories are searched."""

    def close(self) -> None:  # noqa: B027 - most let go by themselves
        """Let go of files."""


class _LangGraph(Peer):
    """LangGraph's stores: a namespace for each character."""

    _store: BaseStore

    def add(self, character: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        self._store.batch(
            [PutOp(("memories", character), id, {"text": text}) for id, text in zip(ids, texts, strict=True)]
        )

    def search(self, character: str, query: str, limit: int) -> list[str]:
        return [item.key for item in self._store.search(("memories", character), query=query, limit=limit)]


class LangGraphInMemory(_LangGraph):
    """InMemoryStore: nothing is on the disk."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        self._store = InMemoryStore(index=_index(embed))


class LangGraphSqlite(_LangGraph):
    """SqliteStore, which compares vectors with sqlite-vec."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        # The connection that SqliteStore.from_conn_string makes, from a SQLite that loads extensions.
        self._connection = sqlite3.connect(str(folder / "store.db"), check_same_thread=False, isolation_level=None)
        store = SqliteStore(self._connection, index=_index(embed))
        store.setup()
        self._store = store

    def close(self) -> None:
        self._connection.close()


class Chroma(Peer):
    """One collection in a PersistentClient, cosine, other settings as they come; filtered by character."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        self._embed = embed
        self._collection = _collection(folder)

    def add(self, character: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        self._collection.add(
            ids=list(ids),
            documents=list(texts),
            embeddings=self._embed(texts),
            metadatas=[{"character": character} for _ in ids],
        )

    def search(self, character: str, query: str, limit: int) -> list[str]:
        found = self._collection.query(
            query_embeddings=self._embed([query]), n_results=limit, where={"character": character}
        )
        return found["ids"][0]


class LlamaIndexFusion(Peer):
    """QueryFusionRetriever: reciprocal ranks of Chroma's vectors and of BM25, which is built when a character opens."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        self._embed = embed
        self._index = VectorStoreIndex.from_vector_store(
            ChromaVectorStore(chroma_collection=_collection(folder)), embed_model=_Embedding(embed)
        )
        self._nodes: dict[str, list[TextNode]] = {}
        self._retrievers: dict[str, QueryFusionRetriever] = {}

    def add(self, character: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        nodes = [
            TextNode(
                id_=id,
                text=text,
                embedding=vector.tolist(),
                metadata={"character": character},
                excluded_embed_metadata_keys=["character"],
            )
            for id, text, vector in zip(ids, texts, self._embed(texts), strict=True)
        ]
        self._index.insert_nodes(nodes)
        self._nodes.setdefault(character, []).extend(nodes)

    def open(self, character: str) -> None:
        own = MetadataFilters(filters=[MetadataFilter(key="character", value=character)])
        nodes = self._nodes[character]
        self._retrievers[character] = QueryFusionRetriever(
            [
                self._index.as_retriever(similarity_top_k=_LEG, filters=own),
                BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=min(_LEG, len(nodes))),
            ],
            llm=MockLLM(),
            mode=FUSION_MODES.RECIPROCAL_RANK,
            similarity_top_k=10,
            num_queries=1,
            use_async=False,
        )

    def search(self, character: str, query: str, limit: int) -> list[str]:
        return [found.node.node_id for found in self._retrievers[character].retrieve(query)][:limit]


class Mem0(Peer):
    """mem0 with `infer=False` and local Qdrant: what is said is kept as it is.

    Its search is by meaning alone here: for words it wants a file from Hugging Face, for entities a model of spaCy's.
    """

    def __init__(self, folder: Path, embed: Embed) -> None:
        from rpla.memory.sentences import minilm_folder

        self._memory = mem0.Memory.from_config(
            {
                "vector_store": {
                    "provider": "qdrant",
                    "config": {
                        "collection_name": "memories",
                        "path": str(folder / "qdrant"),
                        "embedding_model_dims": DIMENSIONS,
                        "on_disk": True,
                    },
                },
                "embedder": {"provider": "huggingface", "config": {"model": str(minilm_folder())}},
                "history_db_path": str(folder / "history.db"),
            }
        )
        self._memory.embedding_model.embed = lambda text, *_, **__: embed([text])[0].tolist()
        self._ids: dict[str, str] = {}

    def add(self, character: str, ids: Sequence[str], texts: Sequence[str]) -> None:
        messages = [{"role": "user", "content": text} for text in texts]
        added = self._memory.add(messages, user_id=character, infer=False)["results"]
        self._ids.update((one["id"], id) for one, id in zip(added, ids, strict=True))

    def search(self, character: str, query: str, limit: int) -> list[str]:
        found = self._memory.search(query, top_k=limit, filters={"user_id": character}, threshold=0.0)["results"]
        return [self._ids[one["id"]] for one in found]

    def close(self) -> None:
        self._memory.vector_store.client.close()


PEERS: dict[str, type[Peer]] = {
    "langgraph-in-memory": LangGraphInMemory,
    "langgraph-sqlite": LangGraphSqlite,
    "chroma": Chroma,
    "llama-index-fusion": LlamaIndexFusion,
    "mem0": Mem0,
}
PACKAGES = {
    "langgraph-in-memory": ("langgraph", "langgraph-checkpoint"),
    "langgraph-sqlite": ("langgraph", "langgraph-checkpoint-sqlite", "sqlite-vec"),
    "chroma": ("chromadb",),
    "llama-index-fusion": ("llama-index-core", "llama-index-retrievers-bm25", "llama-index-vector-stores-chroma"),
    "mem0": ("mem0ai", "qdrant-client"),
}


class _Embedding(BaseEmbedding):
    """The embedder that all share, as LlamaIndex calls it."""

    def __init__(self, embed: Embed) -> None:
        super().__init__()
        self._embed = embed

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text])[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def _index(embed: Embed) -> dict[str, object]:
    # SqliteStore 3.1.2 is documented to read `fields`, and reads `text_fields`: else it embeds the value's JSON.
    fields = {"fields": ["text"], "text_fields": ["text"]}
    return {"dims": DIMENSIONS, "embed": lambda texts: embed(texts).tolist(), **fields}


def _collection(folder: Path) -> chromadb.Collection:
    client = chromadb.PersistentClient(
        str(folder / "chroma"), settings=chromadb.Settings(anonymized_telemetry=False, allow_reset=True)
    )
    return client.get_or_create_collection(
        "memories", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )
