"""How two processes prove to each other that they hold the cluster token, which itself is never sent.

Each side picks a nonce and answers the other's with an HMAC over both and over what it says of itself; the role is part
of it, so an answer cannot be sent back as one's own, and so is the greeting, which names the protocol. On one host a
message is one packet of a SOCK_SEQPACKET socket; between hosts the same three travel as frames (`control`):

    owner  -> reader   GREETING, owner's nonce
    reader -> owner    reader's nonce, proof(reader), reader's node id
    owner  -> reader   proof(owner), packed binding            with the slab's read-only descriptor
"""

import hmac
import os
import socket
import struct

from core.errors import ConfigError

GREETING = b"penstock-shm-1\n"
PAIR_GREETING = b"penstock-pair-1\n"
NONCE_BYTES = 32
PROOF_BYTES = 32
MAX_PACKET_BYTES = 4096
MIN_TOKEN_BYTES = 16


def check_token(token: bytes) -> None:
    """Raises ConfigError for a token that could be guessed."""
    if len(token) < MIN_TOKEN_BYTES:
        raise ConfigError([f"cluster token: {len(token)} bytes; at least {MIN_TOKEN_BYTES} are needed"])


def proof(
    token: bytes, role: str, owner_nonce: bytes, reader_nonce: bytes, said: bytes, greeting: bytes = GREETING
) -> bytes:
    """What only a holder of the token can answer. All parts but the last have a fixed length or end by themselves."""
    return hmac.digest(token, greeting + role.encode() + b"\n" + owner_nonce + reader_nonce + said, "sha256")


def is_proof(
    given: bytes,
    token: bytes,
    role: str,
    owner_nonce: bytes,
    reader_nonce: bytes,
    said: bytes,
    greeting: bytes = GREETING,
) -> bool:
    """Whether `given` is that answer, compared in constant time."""
    return hmac.compare_digest(given, proof(token, role, owner_nonce, reader_nonce, said, greeting))


def is_same_user(link: socket.socket) -> bool:
    """Whether the kernel says that the other end belongs to our user."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())
