"""Requests without their tokens: lengths and content keys are all that deciding needs, and all that a workload has."""

from struct import pack

from cluster.workload.items import WorkItem
from core.ids import RequestId
from core.request import SLO, Prompt, Request, SamplingParams


class Prompts:
    """Makes requests of a workload's items.

    Owns: the keys made so far. A key names a tenant, a prefix block of the workload and a place: equal prefixes of one
    tenant have equal keys, and where a KV block reaches over several prefix blocks the last one names it.
    """

    def __init__(self, block_tokens: int, block_size: int, max_tokens: int, deadline_s: float) -> None:
        self._block_tokens = block_tokens
        self._block_size = block_size
        self._max_tokens = max_tokens
        self._deadline_s = deadline_s
        self._tenants: dict[str, int] = {}
        self._keys: dict[tuple[int, int, int], bytes] = {}

    def request(self, name: RequestId, item: WorkItem, slo: SLO, max_model_len: int) -> Request:
        """What its client sends: all ask for the same large number of tokens, as far as the model reaches."""
        most = max(item.output_tokens, min(self._max_tokens, max_model_len - item.prompt_tokens))
        return Request(
            name,
            self._prompt(item),
            b"",
            SamplingParams(most, temperature=0.0),
            slo,
            min(item.priority, -1) if item.offline else item.priority,
            item.tenant,
            self._deadline_s,
        )

    def _prompt(self, item: WorkItem) -> Prompt:
        num_tokens, size = item.prompt_tokens, self._block_size
        if not item.block_ids:
            return Prompt(num_tokens)
        tenant = self._tenants.setdefault(item.tenant, len(self._tenants))
        covered = min(num_tokens, len(item.block_ids) * self._block_tokens)
        keys = tuple(self._key(tenant, item, end) for end in range(size, covered + 1, size))
        if covered < num_tokens:
            return Prompt(num_tokens, keys)
        return Prompt(num_tokens, keys, self._key(tenant, item, num_tokens))

    def _key(self, tenant: int, item: WorkItem, end: int) -> bytes:
        name = (tenant, item.block_ids[(end - 1) // self._block_tokens], end)
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = pack("<IqI", *name)
        return key
