"""The door's keeper: who calls, what they may ask for, and how much. Every refusal comes before any work."""

from dataclasses import dataclass, replace

from cluster.gateway.errors_wire import FieldError, echoed
from cluster.gateway.keys import BUILT_IN_CLASSES, AccessSettings, Grant, ServiceClass, find_key
from cluster.gateway.validation import PRIORITY_CLAMPED, Envelope
from core.errors import AccessDenied, ConfigError, QuotaExceeded

BEARER = "bearer "
MINUTE_S = 60.0
RETRY_CONCURRENT_S = 1.0
"""When a key's open requests end is not known; a second is what the gateway says where it is full, too."""


@dataclass(slots=True)
class _Bucket:
    """What may be used, refilled steadily up to a minute's worth. Owns: its level."""

    per_minute: float
    level: float
    filled_at: float

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0: now. The level may be below 0 after a debt, never above full."""
        self._fill(now)
        missing = amount - self.level
        return max(0.0, missing * MINUTE_S / self.per_minute)

    def take(self, amount: float) -> None:
        """Take it out; a negative amount gives back."""
        self.level = min(self.level - amount, self.per_minute)

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self.filled_at) * self.per_minute / MINUTE_S
        self.level, self.filled_at = min(self.level + gained, self.per_minute), now


class Caller:
    """The holder of one key, or, where no keys are asked for, everybody.

    Owns: what the key has used of its quota, and how many of its requests are open. Times are of the monotonic clock.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.num_open = 0
        self._requests: _Bucket | None = None
        self._tokens: _Bucket | None = None

    def change(self, grant: Grant) -> None:
        """The key may do something else from now on; a bound of its quota that changed begins full."""
        before, now = self.grant.quota, grant.quota
        if before.requests_per_minute != now.requests_per_minute:
            self._requests = None
        if before.tokens_per_minute != now.tokens_per_minute:
            self._tokens = None
        self.grant = grant

    def may_use(self, model: str) -> bool:
        """Whether the key opens a model."""
        return not self.grant.models or model in self.grant.models

    def check_admin(self) -> None:
        """Raises AccessDenied for a key that is no operator's."""
        if not self.grant.is_admin:
            raise AccessDenied("this needs an operator's key", code="admin_forbidden")

    def check_model(self, name: str) -> None:
        """Raises AccessDenied for a model that the key does not open."""
        if not self.may_use(name):
            raise AccessDenied(f"this key does not open the model {echoed(name)}", code="model_forbidden")

    def tenant(self, asked: str) -> str:
        """The tenant of a request. Only who needs no key may choose one. Raises AccessDenied."""
        if not self.grant.id:
            return asked
        if asked not in ("", self.grant.tenant):
            raise AccessDenied(f"this key is not of the tenant {echoed(asked)}", code="tenant_forbidden")
        return self.grant.tenant

    def enter(self, num_choices: int, now: float) -> "Permit":
        """One call of so many choices begins; `Permit.close` must follow. Raises QuotaExceeded."""
        quota = self.grant.quota
        if quota.max_concurrent is not None and self.num_open + num_choices > quota.max_concurrent:
            used = f"{self.num_open} of this key's {quota.max_concurrent} requests at once are open"
            can_fit = num_choices <= quota.max_concurrent
            wait_s = RETRY_CONCURRENT_S if can_fit else None
            raise QuotaExceeded(f"{used}, {num_choices} more are needed", retry_after_s=wait_s)
        self._requests = _take(self._requests, quota.requests_per_minute, 1, "requests", now)
        self.num_open += num_choices
        return Permit(self, num_choices)

    def charge(self, num_tokens: int, now: float) -> None:
        """Take tokens from the key's minute. Raises QuotaExceeded; then nothing was taken."""
        self._tokens = _take(self._tokens, self.grant.quota.tokens_per_minute, num_tokens, "tokens", now)

    def give_back(self, num_tokens: int) -> None:
        """Tokens that were charged and not used."""
        if self._tokens is not None:
            self._tokens.take(-num_tokens)


class Permit:
    """One call's share of its caller's quota. Owns: what it was charged, until it is closed."""

    def __init__(self, caller: Caller, num_choices: int) -> None:
        self.caller = caller
        self._num_choices = num_choices
        self._num_charged = 0
        self._is_closed = False

    def charge(self, num_tokens: int, now: float) -> None:
        """The most that the call can use, once its prompt is counted. Raises QuotaExceeded."""
        self.caller.charge(num_tokens, now)
        self._num_charged += num_tokens

    def close(self, num_used: int = 0) -> None:
        """The call is over, and used so many tokens of prompt and answers. Twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        self.caller.num_open -= self._num_choices
        self.caller.give_back(max(0, self._num_charged - num_used))


ANYONE = Grant()


class Access:
    """Who may call. Without keys everybody may, and then the servers listen on loopback only.

    Owns: the callers, one for each key, the tenants that keys name, and the classes of requests.
    """

    def __init__(self, settings: AccessSettings = AccessSettings()) -> None:  # noqa: B008 - frozen
        self.settings = settings
        self._classes = _classes(settings)
        self._callers = {each.grant.id: Caller(each.grant) for each in settings.keys}
        self.tenants = _tenants(settings)
        self._anyone = Caller(ANYONE)

    @property
    def is_open(self) -> bool:
        """Whether calls need no key."""
        return self.settings.is_open

    @property
    def classes(self) -> tuple[ServiceClass, ...]:
        """Every class that a request may name."""
        return tuple(self._classes.values())

    def reload(self, settings: AccessSettings) -> None:
        """Take other keys and classes; a key that stays keeps what it has used, and open calls go on.

        Raises ConfigError where the last key or the last operator's would go: an open door needs a new start.
        """
        for what, had, has in (
            ("key", not self.is_open, not settings.is_open),
            ("operator's key", self.settings.has_admin, settings.has_admin),
        ):
            if had and not has:
                raise ConfigError([f"the access file has no {what} any more; start the server again if you mean it"])
        callers = {each.grant.id: self._callers.get(each.grant.id) or Caller(each.grant) for each in settings.keys}
        for each in settings.keys:
            callers[each.grant.id].change(each.grant)
        self.settings, self._callers, self.tenants = settings, callers, _tenants(settings)
        self._classes = _classes(settings)

    def caller(self, authorization: str | None, wall_s: float) -> Caller:
        """Who sent this `authorization` header (`Bearer KEY`), at `wall_s` seconds since the epoch.

        Raises AccessDenied without saying which part was wrong; the key is never said back.
        """
        if self.is_open:
            return self._anyone
        if not authorization:
            raise AccessDenied("a key is needed: send it as `authorization: Bearer KEY`")
        if not authorization.lower().startswith(BEARER):
            raise AccessDenied("the authorization must be `Bearer KEY`")
        found = find_key(authorization[len(BEARER) :].strip(), self.settings.keys)
        if found is None or (found.grant.expires_at is not None and found.grant.expires_at <= wall_s):
            raise AccessDenied("this key is not known, or no longer")
        return self._callers[found.grant.id]

    def holder(self, key_id: str, wall_s: float) -> Caller | None:
        """Whose key has this id, at `wall_s` seconds since the epoch; empty: everybody, where no keys are asked for.

        For work that its caller left here: None where the key is gone, has ended, or is asked for by now.
        """
        if self.is_open or not key_id:
            return self._anyone if self.is_open and not key_id else None
        caller = self._callers.get(key_id)
        expires_at = None if caller is None else caller.grant.expires_at
        return None if expires_at is not None and expires_at <= wall_s else caller

    def admin(self, authorization: str | None, wall_s: float) -> Caller:
        """The same for the admin port, which asks for an admin's key where there is one. Raises AccessDenied."""
        if not self.settings.has_admin:
            return self._anyone
        caller = self.caller(authorization, wall_s)
        caller.check_admin()
        return caller

    def admit(self, envelope: Envelope, caller: Caller) -> Envelope:
        """A request as its caller may have it: its tenant, its class, its targets, and no higher priority.

        Raises AccessDenied for another tenant, FieldError for a class that there is not.
        """
        kind, grant = self.service_class(envelope.slo_class, caller), caller.grant
        tenant = caller.tenant(envelope.tenant)
        asked = envelope.priority or kind.priority
        priority = min(asked, grant.max_priority)
        was_clamped = priority != asked and PRIORITY_CLAMPED not in envelope.notes
        return replace(
            envelope,
            tenant=tenant,
            priority=priority,
            slo_class=kind.name,
            slo=envelope.slo or (None if envelope.slo_class else grant.slo) or kind.slo,
            cache_scope=_scope(tenant, grant.cache_salt, envelope.cache_salt),
            notes=(*envelope.notes, PRIORITY_CLAMPED) if was_clamped else envelope.notes,
        )

    def service_class(self, asked: str, caller: Caller) -> ServiceClass:
        """The class of a request: the one it names, else its key's. Raises FieldError for a name that is none."""
        name = asked or caller.grant.slo_class
        found = self._classes.get(name)
        if found is None:
            known = ", ".join(self._classes)
            raise FieldError("slo_class", f"{echoed(name)} is not known; there are {known}", "invalid_slo_class")
        return found


def _classes(settings: AccessSettings) -> dict[str, ServiceClass]:
    """By name; a class of the file stands above a built-in one of that name."""
    return {each.name: each for each in (*BUILT_IN_CLASSES, *settings.classes)}


def _tenants(settings: AccessSettings) -> frozenset[str]:
    """Those that the file names: a closed set, which may stand in labels."""
    return frozenset(each.grant.tenant for each in settings.keys)


def _scope(tenant: str, *salts: str) -> str:
    """With whom KV is shared: tenants and salts have no `/`, so different ones never join to the same."""
    return "/".join((tenant, *salts)) if any(salts) else tenant


def _take(bucket: _Bucket | None, per_minute: float | None, amount: int, what: str, now: float) -> _Bucket | None:
    """Take from a bucket, made full where there is none yet. Raises QuotaExceeded; then nothing was taken."""
    if per_minute is None:
        return None
    bucket = bucket or _Bucket(per_minute, per_minute, now)
    limit = f"this key may use {per_minute:g} {what} in a minute"
    if amount > per_minute:
        raise QuotaExceeded(f"{limit}, and this request needs {amount}")
    if wait_s := bucket.wait_s(amount, now):
        raise QuotaExceeded(f"{limit}, and has used them", retry_after_s=wait_s)
    bucket.take(amount)
    return bucket
