"""Fixed-length, opaque ids: no id is a prefix, a wildcard or a look-alike of another."""

import uuid
from hashlib import blake2b


def new_id() -> str:
    """A fresh id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def id_of(kind: str, label: str) -> str:
    """The id that stands for a label (a user's name, a bundled character): equal only for equal code points."""
    return blake2b(f"{kind}\0{label}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
