"""What a key may do, and the key itself: minted once, kept as its SHA-256 only."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from core.request import SLO

KEY_PREFIX = "psk-"
KEY_BYTES = 32
MAX_KEY_CHARS = 512
MAX_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of one key; None is unbounded.

    A minute's worth may be used at once. Tokens are charged before work starts, as prompt and `max_tokens` of every
    choice; what an answer did not use is given back at its end. `max_concurrent` counts every choice of an open call.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """A named class of requests: its targets where they name none, and its priority where they name none."""

    name: str
    slo: SLO | None = None
    priority: int = 0


STANDARD = ServiceClass("standard")
OFFLINE = ServiceClass("offline", priority=-1)
BUILT_IN_CLASSES = (STANDARD, OFFLINE)


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of one key may do. `id` names the key in logs and never opens anything.

    `models` empty: all that are served. `cache_salt` sets its KV apart from that of other keys of the same tenant.
    `slo` and `slo_class` are for requests that name none. `expires_at` is seconds since the epoch, None for never.
    """

    id: str = ""
    tenant: str = ""
    models: tuple[str, ...] = ()
    quota: Quota = field(default_factory=Quota)
    max_priority: int = MAX_PRIORITY
    slo_class: str = STANDARD.name
    slo: SLO | None = None
    cache_salt: str = ""
    expires_at: float | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as the file keeps it. `digest` is the SHA-256 of the whole key."""

    digest: bytes = field(repr=False)
    grant: Grant


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may call, as the access file says it; without keys everybody may."""

    keys: tuple[StoredKey, ...] = ()
    classes: tuple[ServiceClass, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether calls need no key."""
        return not self.keys

    @property
    def has_admin(self) -> bool:
        """Whether some key opens the admin port."""
        return any(each.grant.is_admin for each in self.keys)


def mint_key() -> str:
    """A new key of 256 random bits, to be shown once and kept by nobody here."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> bytes:
    """What is kept of a key. Keys are random, so a plain hash of them cannot be guessed backwards."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def find_key(key: str, stored: tuple[StoredKey, ...]) -> StoredKey | None:
    """The stored key that `key` opens; all are compared, in constant time each, so that time tells nothing."""
    if len(key) > MAX_KEY_CHARS:
        return None
    presented, found = digest_of(key), None
    for each in stored:
        if hmac.compare_digest(presented, each.digest):
            found = each
    return found
