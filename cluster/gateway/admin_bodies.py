"""The bodies that operators send over HTTP."""

from pydantic import Field

from cluster.gateway.openai.fields import Closed, Number, Whole

MAX_DRAIN_S = 3600.0
DRAIN_S = 600.0


class RatioBody(Closed):
    """POST /cluster/ratio: `ratio`, or `prefill` and `decode`."""

    ratio: str | None = Field(None, description="`P:D`, or `auto`: every node goes back to the controller.")
    prefill: Whole | None = Field(None, description="P as a number; needs `decode`.", json_schema_extra={"minimum": 1})
    decode: Whole | None = Field(None, description="D as a number; needs `prefill`.", json_schema_extra={"minimum": 1})


class MixBody(Closed):
    """POST /nodes/{node}/mix"""

    role: str = Field(
        description="`auto`: back to the controller.",
        json_schema_extra={"enum": ["prefill", "decode", "mixed", "closed", "auto"]},
    )
    prefill_tokens_per_step: Whole | None = Field(
        None, description="At most so many prompt tokens a step; default: as before.", json_schema_extra={"minimum": 1}
    )
    max_decode_rows: Whole | None = Field(
        None, description="At most so many answers at once; default: as before.", json_schema_extra={"minimum": 1}
    )
    force: bool | None = Field(None, description="Even where nobody would prefill or decode afterwards.")


class FlushBody(Closed):
    """POST /flush_cache: nothing to say."""


class DrainBody(Closed):
    """POST /nodes/{node}/drain"""

    force: bool | None = Field(None, description="Even the last one that prefills or decodes.")
    for_restart: bool | None = Field(None, description="The node that comes after it is open again.")
    timeout_s: Number | None = Field(
        None,
        description=f"Wait no longer than this; the node stays closed. Default {DRAIN_S:g}.",
        json_schema_extra={"exclusiveMinimum": 0, "maximum": MAX_DRAIN_S},
    )
