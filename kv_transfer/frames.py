"""The frames of a two-sided transport's control connection: how they are written, and what is refused before use.

A frame is a header (magic, version, kind, length and digest of the body), then the body: a msgpack array whose fields
have fixed types. Nothing of a body is looked at before its length and digest are right.
"""

import struct
import threading
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

import msgpack
import xxhash

MAGIC = b"PNKV"
VERSION = 1
HEADER = struct.Struct("!4sBBxxIQ")
MAX_BODY_BYTES = 8 << 20
MAX_STRANGER_BYTES = 4096
"""Of a frame from who has not proven itself yet."""


class Kind(IntEnum):
    """What a frame says."""

    GREETING = 1
    PROOF = 2
    WELCOME = 3
    OPEN = 4
    KEY = 5
    ASK = 6
    WANT = 7
    PIECE = 8
    REFUSED = 9
    PROBE = 10


FIELDS: dict[int, tuple[type, ...]] = {
    Kind.GREETING: (bytes, bytes),  # greeting, owner's nonce
    Kind.PROOF: (bytes, bytes, str, str),  # reader's nonce, proof, reader, wanted owner
    Kind.WELCOME: (bytes, bytes),  # proof, packed binding
    Kind.OPEN: (int,),  # number of the pair
    Kind.KEY: (int, str, bytes),  # number of the pair, key, value
    Kind.ASK: (int, str, str, bytes, bytes),  # number, owner, attempt, block ids u32, generations u64
    Kind.WANT: (int, int, int),  # number, first byte and end in the asked blocks laid end to end
    Kind.PIECE: (int, int, int, bytes, bytes),  # as wanted, generations u64 before and after packing
    Kind.REFUSED: (int, str, str),  # number, reason, text
    Kind.PROBE: (int, int),  # number, bytes
}


class BadFrame(Exception):
    """A frame that is not believed. `reason` is one word, for counting."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Refusals:
    """How often something was refused, by reason. Owns: the counts, which only rise."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, reason: str) -> None:
        """One more."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """A copy."""
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's header that was found sound."""

    kind: Kind
    num_bytes: int
    digest: int


def encode(kind: Kind, *fields: object) -> bytes:
    """A whole frame."""
    body: bytes = msgpack.packb(fields)
    return HEADER.pack(MAGIC, VERSION, kind, len(body), xxhash.xxh3_64_intdigest(body)) + body


def read_header(data: bytes, max_bytes: int) -> Header:
    """Raises BadFrame."""
    magic, version, kind, num_bytes, digest = HEADER.unpack(data)
    if magic != MAGIC:
        raise BadFrame("magic", f"a frame begins with {magic!r}")
    if version != VERSION:
        raise BadFrame("version", f"frames of version {version}; this side speaks {VERSION}")
    if kind not in FIELDS:
        raise BadFrame("kind", f"no frame is of kind {kind}")
    if num_bytes > max_bytes:
        raise BadFrame("length", f"a frame of {num_bytes} bytes; the limit is {max_bytes}")
    return Header(Kind(kind), num_bytes, digest)


def read_body(header: Header, body: bytes) -> tuple[object, ...]:
    """The fields, of the types that this kind has. Raises BadFrame."""
    if xxhash.xxh3_64_intdigest(body) != header.digest:
        raise BadFrame("digest", f"the digest of a frame {header.kind.name} is not that of its body")
    try:
        fields = msgpack.unpackb(body, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise BadFrame("body", f"the body of a frame {header.kind.name} cannot be read") from error
    if not isinstance(fields, tuple) or tuple(map(type, fields)) != FIELDS[header.kind]:
        raise BadFrame("body", f"a frame {header.kind.name} has other fields than it should")
    return fields
