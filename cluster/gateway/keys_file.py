"""The access file: keys by their hashes, whose they are and what they may do, and the classes of requests.

YAML or JSON. Every problem is told at once, by its place and line; what no key of the file is called is refused.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cluster.config_yaml import Document, nearest, read_document
from cluster.gateway.keys import (
    BUILT_IN_CLASSES,
    MAX_PRIORITY,
    STANDARD,
    AccessSettings,
    Grant,
    Quota,
    ServiceClass,
    StoredKey,
)
from core.errors import ConfigError
from core.request import SLO

MAX_SLO_S = 600.0
MAX_KEYS = 1000
"""All stored keys are compared with one that is presented: a thousand take a tenth of a millisecond."""

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Seconds = Annotated[float, Field(gt=0, le=MAX_SLO_S, allow_inf_nan=False)]
_Rate = Annotated[float, Field(ge=1, allow_inf_nan=False)]
_Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
_CLOSED = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED
    ttft_s: _Seconds
    tpot_s: _Seconds

    @property
    def slo(self) -> SLO:
        return SLO(self.ttft_s, self.tpot_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED
    slo: _Targets | None = None
    priority: _Priority = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """One key; the words of the file are those of `Grant` and `Quota`."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED
    id: _Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: _Name | None = None
    models: tuple[str, ...] = ()
    requests_per_minute: _Rate | None = None
    tokens_per_minute: _Rate | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    max_priority: _Priority = MAX_PRIORITY
    slo_class: str = STANDARD.name
    slo: _Targets | None = None
    cache_salt: _Name | None = None
    expires: str | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED
    keys: Annotated[tuple[_Key, ...], Field(max_length=MAX_KEYS)] = ()
    classes: dict[_Name, _Class] = field(default_factory=dict)


def read_access_file(path: Path) -> AccessSettings:
    """Reads and checks a file. Raises ConfigError with every problem."""
    document = read_document(path)
    try:
        file = _adapter().validate_json(json.dumps({} if document.value is None else document.value))
    except ValidationError as error:
        raise ConfigError(list(_told(error, document))) from error
    if problems := list(_problems(file, document)):
        raise ConfigError(problems)
    classes = tuple(
        ServiceClass(name, each.slo.slo if each.slo else None, each.priority) for name, each in file.classes.items()
    )
    return AccessSettings(tuple(map(_stored, file.keys)), classes)


@cache
def _adapter() -> TypeAdapter[_File]:
    return TypeAdapter(_File)


def _stored(key: _Key) -> StoredKey:
    grant = Grant(
        id=key.id,
        tenant=key.tenant or key.id,
        models=key.models,
        quota=Quota(key.requests_per_minute, key.tokens_per_minute, key.max_concurrent),
        max_priority=key.max_priority,
        slo_class=key.slo_class,
        slo=key.slo.slo if key.slo else None,
        cache_salt=key.cache_salt or "",
        expires_at=None if key.expires is None else _moment(key.expires).timestamp(),
        is_admin=key.admin,
    )
    return StoredKey(bytes.fromhex(key.sha256), grant)


def _moment(text: str) -> datetime:
    """A date or a time as ISO 8601 writes it; in UTC where no zone is told. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _problems(file: _File, document: Document) -> Iterator[str]:
    """What each value allows, and all of them together do not."""
    known = {*(each.name for each in BUILT_IN_CLASSES), *file.classes}
    seen: set[str] = set()
    for index, key in enumerate(file.keys):
        at = f"keys[{index}]"
        for word, value in (("id", key.id), ("sha256", key.sha256)):
            if value in seen:
                yield f"{document.where(f'{at}.{word}')}: {at}.{word}: another key has the same"
            seen.add(value)
        if key.slo_class not in known:
            named = f"{at}.slo_class: {key.slo_class!r} is not known; there are {', '.join(sorted(known))}"
            yield f"{document.where(f'{at}.slo_class')}: {named}"
        try:
            _moment(key.expires or "2027-01-01")
        except ValueError:
            yield f"{document.where(f'{at}.expires')}: {at}.expires: {key.expires!r} is no date such as 2027-01-31"


def _told(error: ValidationError, document: Document) -> Iterator[str]:
    """The problems in our words; what a key's field holds is not said back."""
    for problem in error.errors(include_url=False, include_input=False):
        at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            told = f"is not known{_nearest(problem['loc'])}"
        else:
            told = re.sub(r"^(Input|String|Value|Dictionary|Tuple) ", "", problem["msg"])
        yield f"{document.where(at)}: {at or 'the file'}: {told}"


def _nearest(loc: tuple[int | str, ...]) -> str:
    kinds = {1: _File, 2: _File, 3: _Key if loc[0] == "keys" else _Class}
    return nearest(str(loc[-1]), [each.name for each in fields(kinds.get(len(loc), _Targets))])
