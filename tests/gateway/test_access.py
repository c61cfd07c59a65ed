"""Who may call and how much: found by their key, bounded before any work, and charged for what they used."""

from dataclasses import replace

import pytest

from cluster.gateway.access import ANYONE, Access, Caller
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.keys import (
    AccessSettings,
    Grant,
    Quota,
    ServiceClass,
    StoredKey,
    digest_of,
    find_key,
    mint_key,
)
from cluster.gateway.validation import PRIORITY_CLAMPED, Envelope
from core.errors import AccessDenied, ConfigError, QuotaExceeded
from core.request import SLO
from tests.gateway.keyed import CHAT


def envelope(**fields: object) -> Envelope:
    plain: dict[str, object] = {"client_id": "", "slo": None, "priority": 0, "tenant": "", "deadline_s": 9.0}
    return Envelope(**(plain | {"num_choices": 1, "stop": ()} | fields))  # type: ignore[arg-type]


def access_of(*grants: Grant, classes: tuple[ServiceClass, ...] = ()) -> tuple[Access, list[str]]:
    keys = [mint_key() for _ in grants]
    stored = tuple(StoredKey(digest_of(key), grant) for key, grant in zip(keys, grants, strict=True))
    return Access(AccessSettings(stored, classes)), [f"Bearer {key}" for key in keys]


def test_each_key_finds_its_own_holder_and_the_same_one_each_time() -> None:
    access, (first, second) = access_of(Grant("a", "acme"), Grant("b", "acme"))
    assert access.caller(first, 0.0) is access.caller(first.replace("Bearer", "bearer"), 1.0)
    assert (access.caller(first, 0.0).grant.id, access.caller(second, 0.0).grant.id) == ("a", "b")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer ", "Bearer psk-wrong", "Basic abc", "psk-x", "Bearer " + "x" * 600, "Bearer \udc80"]
)
def test_whoever_shows_no_known_key_is_denied_without_a_hint(header: str | None) -> None:
    access, (right,) = access_of(Grant("a"))
    with pytest.raises(AccessDenied) as denied:
        access.caller(header, 0.0)
    assert denied.value.code == "invalid_api_key"
    assert "wrong" not in denied.value.message and right not in denied.value.message


def test_a_key_ends_at_its_moment() -> None:
    access, (key,) = access_of(Grant("a", expires_at=100.0))
    assert access.caller(key, 99.9).grant.id == "a"
    with pytest.raises(AccessDenied):
        access.caller(key, 100.0)


def test_without_keys_everybody_is_the_same_caller_whatever_they_show() -> None:
    access = Access()
    assert access.is_open
    assert access.caller(None, 0.0) is access.caller("Bearer psk-anything", 0.0)
    assert access.caller(None, 0.0).grant == ANYONE


def test_a_minted_key_has_256_bits_and_only_its_hash_is_kept() -> None:
    keys = {mint_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == len("psk-") + 43 for key in keys)
    stored = tuple(StoredKey(digest_of(key), Grant(key[-4:])) for key in keys)
    assert all(find_key(key, stored) is not None for key in keys)
    assert not any(key in repr(each) or digest_of(key).hex() in repr(each) for key in keys for each in stored)


def test_the_admin_port_asks_for_an_operators_key_where_there_is_one() -> None:
    access, (user, operator) = access_of(Grant("u"), Grant("o", is_admin=True))
    assert access.admin(operator, 0.0).grant.id == "o"
    for header, code in ((user, "admin_forbidden"), (None, "invalid_api_key")):
        with pytest.raises(AccessDenied) as denied:
            access.admin(header, 0.0)
        assert denied.value.code == code
    without, _ = access_of(Grant("u"))
    assert without.admin(None, 0.0).grant == ANYONE


def test_a_minutes_requests_may_come_at_once_and_the_next_when_the_bucket_says() -> None:
    caller = Caller(Grant("a", quota=Quota(requests_per_minute=3)))
    permits = [caller.enter(1, 10.0) for _ in range(3)]
    with pytest.raises(QuotaExceeded) as full:
        caller.enter(1, 10.0)
    assert full.value.retry_after_s == pytest.approx(20.0)
    with pytest.raises(QuotaExceeded) as later:
        caller.enter(1, 29.0)
    assert later.value.retry_after_s == pytest.approx(1.0)
    permits.append(caller.enter(1, 30.1))
    assert caller.num_open == 4
    for permit in permits:
        permit.close()
        permit.close()
    assert caller.num_open == 0


def test_rest_saves_up_a_minutes_worth_and_no_more() -> None:
    caller = Caller(Grant("a", quota=Quota(requests_per_minute=2)))
    caller.enter(1, 0.0)
    for _ in range(2):
        caller.enter(1, 10_000.0)
    with pytest.raises(QuotaExceeded):
        caller.enter(1, 10_000.0)


def test_choices_count_as_requests_at_once_and_more_than_the_limit_never_fits() -> None:
    caller = Caller(Grant("a", quota=Quota(max_concurrent=3)))
    permit = caller.enter(2, 0.0)
    with pytest.raises(QuotaExceeded, match="2 of this key's 3") as busy:
        caller.enter(2, 0.0)
    assert busy.value.retry_after_s == 1.0
    with pytest.raises(QuotaExceeded) as never:
        caller.enter(4, 0.0)
    assert never.value.retry_after_s is None
    permit.close()
    caller.enter(3, 0.0)


def test_tokens_are_charged_at_their_most_and_given_back_as_they_were_not_used() -> None:
    caller = Caller(Grant("a", quota=Quota(tokens_per_minute=600)))
    permit = caller.enter(1, 0.0)
    permit.charge(500, 0.0)
    other = caller.enter(1, 0.0)
    with pytest.raises(QuotaExceeded) as short:
        other.charge(200, 0.0)
    assert short.value.retry_after_s == pytest.approx(10.0)
    permit.close(num_used=50)
    other.charge(550, 0.0)
    with pytest.raises(QuotaExceeded):
        caller.enter(1, 0.0).charge(1, 0.0)
    with pytest.raises(QuotaExceeded, match="needs 601") as never:
        caller.enter(1, 9_000.0).charge(601, 9_000.0)
    assert never.value.retry_after_s is None


def test_a_call_that_was_refused_its_tokens_gives_nothing_back() -> None:
    caller = Caller(Grant("a", quota=Quota(tokens_per_minute=100)))
    caller.enter(1, 0.0).charge(100, 0.0)
    refused = caller.enter(1, 0.0)
    with pytest.raises(QuotaExceeded):
        refused.charge(50, 0.0)
    refused.close()
    with pytest.raises(QuotaExceeded):
        caller.enter(1, 0.0).charge(1, 0.0)


def test_a_request_gets_its_keys_tenant_class_targets_and_ceiling() -> None:
    grant = Grant("a", "acme", max_priority=2, slo=SLO(1.0, 0.1), cache_salt="s")
    access, (key,) = access_of(grant, classes=(CHAT,))
    caller = access.caller(key, 0.0)
    plain = access.admit(envelope(), caller)
    assert (plain.tenant, plain.slo, plain.slo_class, plain.priority) == ("acme", SLO(1.0, 0.1), "standard", 0)
    chat = access.admit(envelope(slo_class="chat"), caller)
    assert (chat.slo, chat.priority, chat.notes) == (CHAT.slo, 2, (PRIORITY_CLAMPED,))
    own = access.admit(envelope(slo=SLO(9.0, 9.0), slo_class="chat", priority=-4), caller)
    assert (own.slo, own.priority, own.notes) == (SLO(9.0, 9.0), -4, ())
    offline = access.admit(envelope(slo_class="offline"), caller)
    assert (offline.slo, offline.priority) == (None, -1)


def test_the_class_of_a_key_is_that_of_requests_that_name_none() -> None:
    access, (key,) = access_of(Grant("a", slo_class="chat"), classes=(CHAT,))
    assert access.admit(envelope(), access.caller(key, 0.0)).slo == CHAT.slo
    with pytest.raises(FieldError, match="standard, offline, chat") as unknown:
        access.admit(envelope(slo_class="chatt"), access.caller(key, 0.0))
    assert (unknown.value.field, unknown.value.code) == ("slo_class", "invalid_slo_class")


def test_another_tenant_or_model_is_forbidden_to_a_key_and_free_to_who_needs_none() -> None:
    access, (key,) = access_of(Grant("a", "acme", models=("m",)))
    caller = access.caller(key, 0.0)
    assert access.admit(envelope(tenant="acme"), caller).tenant == "acme"
    with pytest.raises(AccessDenied) as other:
        access.admit(envelope(tenant="rival"), caller)
    assert other.value.code == "tenant_forbidden"
    caller.check_model("m")
    with pytest.raises(AccessDenied) as model:
        caller.check_model("n")
    assert model.value.code == "model_forbidden"
    assert Access().admit(envelope(tenant="rival"), Caller(ANYONE)).tenant == "rival"


def test_a_reload_changes_keys_and_keeps_what_those_that_stay_have_used() -> None:
    limited = Quota(requests_per_minute=2, max_concurrent=2)
    access, (stays, goes) = access_of(Grant("stays", "acme", quota=limited), Grant("goes"))
    before = access.settings.keys[0]
    permit = access.caller(stays, 0.0).enter(1, 0.0)
    new, changed = mint_key(), replace(before.grant, tenant="other")
    access.reload(AccessSettings((StoredKey(before.digest, changed), StoredKey(digest_of(new), Grant("new"))), (CHAT,)))
    caller = access.caller(stays, 0.0)
    assert (caller.grant.tenant, caller.num_open, permit.caller) == ("other", 1, caller)
    caller.enter(1, 0.0)
    with pytest.raises(QuotaExceeded):
        caller.enter(1, 0.0)
    assert access.caller(f"Bearer {new}", 0.0).grant.id == "new"
    with pytest.raises(AccessDenied):
        access.caller(goes, 0.0)
    assert access.admit(envelope(slo_class="chat"), caller).slo == CHAT.slo
    wider = replace(changed, quota=Quota(requests_per_minute=9))
    access.reload(AccessSettings((StoredKey(before.digest, wider),)))
    for _ in range(9):
        caller.enter(1, 0.0)
    permit.close()
    assert caller.num_open == 10


def test_a_reload_never_opens_the_door() -> None:
    access, (key,) = access_of(Grant("a", is_admin=True))
    with pytest.raises(ConfigError, match="no key any more"):
        access.reload(AccessSettings())
    without = AccessSettings((StoredKey(digest_of(mint_key()), Grant("b")),))
    with pytest.raises(ConfigError, match="no operator's key"):
        access.reload(without)
    assert access.admin(key, 0.0).grant.id == "a"


def test_no_two_tenants_or_salts_share_a_scope() -> None:
    scopes = set()
    for tenant in ("", "a", "b"):
        for of_key in ("", "a", "x"):
            caller = Caller(Grant("id", tenant, cache_salt=of_key))
            for of_request in ("", "a", "x"):
                scopes.add(Access().admit(envelope(cache_salt=of_request), caller).cache_scope)
    assert len(scopes) == 27
