"""How two processes of one cluster prove to each other, before anything else, that both hold the cluster token. Pure.

Challenge and response: nothing that is sent can be replayed, and the token itself never travels.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cluster.api.v1.post_pb2 import Challenge, Hello, Proof
from cluster.codec import SCHEMA

NONCE_BYTES = 16
TOKEN_BYTES = 32


class Untrusted(Exception):
    """The other side does not hold the cluster token."""


class Stale(Exception):
    """The other side speaks for another time: an older term, session, incarnation or build."""


@dataclass(frozen=True, slots=True)
class ClusterToken:
    """The secret of one cluster; its text never shows in a `repr`, a log or an error."""

    secret: bytes

    def __repr__(self) -> str:
        return "ClusterToken(…)"

    @staticmethod
    def mint() -> "ClusterToken":
        """A new one, of 256 random bits."""
        return ClusterToken(secrets.token_bytes(TOKEN_BYTES))

    def prove(self, side: bytes, hello: Hello, nonce: bytes) -> bytes:
        """What only a holder of the token can say of this hello and nonce; `side` keeps answers from being echoed."""
        return hmac.new(self.secret, side + _transcript(hello, nonce), hashlib.sha256).digest()


def _transcript(hello: Hello, nonce: bytes) -> bytes:
    said = hello.SerializeToString(deterministic=True)
    return b"".join(len(part).to_bytes(4, "little") + part for part in (said, nonce))


def greet(sender: str, receiver: str, session: int, term: int) -> Hello:
    """The dialer's first word."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return Hello(sender=sender, receiver=receiver, session=session, term=term, schema=SCHEMA, nonce=nonce)


def challenge(token: ClusterToken, hello: Hello) -> Challenge:
    """The acceptor's answer. Raises Untrusted for a hello without a proper nonce."""
    if len(hello.nonce) != NONCE_BYTES:
        raise Untrusted("the hello has no nonce")
    nonce = secrets.token_bytes(NONCE_BYTES)
    return Challenge(nonce=nonce, proof=token.prove(b"acceptor", hello, nonce))


def answer(token: ClusterToken, hello: Hello, asked: Challenge) -> Proof:
    """The dialer's proof, given only to an acceptor that proved itself. Raises Untrusted."""
    if not hmac.compare_digest(asked.proof, token.prove(b"acceptor", hello, asked.nonce)):
        raise Untrusted("the acceptor does not hold the cluster token")
    return Proof(proof=token.prove(b"dialer", hello, asked.nonce))


def verify(token: ClusterToken, hello: Hello, asked: Challenge, given: Proof) -> None:
    """The acceptor's check of the dialer. Raises Untrusted."""
    if not hmac.compare_digest(given.proof, token.prove(b"dialer", hello, asked.nonce)):
        raise Untrusted("the dialer does not hold the cluster token")


def check_current(hello: Hello, me: str, term: int) -> None:
    """Refuses a hello for an older incarnation of ours, of an older term or of another build. Raises Stale."""
    if hello.receiver != me:
        raise Stale("the hello is for another incarnation of this process")
    if hello.term < term:
        raise Stale(f"term {hello.term} is over; this is term {term}")
    if hello.schema != SCHEMA:
        raise Stale("the two processes are of different builds")
