"""A fault on purpose, for tests and the demo: `PENSTOCK_FAULT_FLIP_KV_BYTE` spoils one byte of transferred KV.

1: after the copy and before the digest is compared, so the fetch must end as Corrupt; once per transport, in the first
block that it moves. 2: after the comparison, so nothing in the protocol can notice, and a comparison of the tokens with
a reference must; in every block, because a trained head may give a single far token no weight at all.
"""

import logging
import os
from collections.abc import Mapping
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.errors import ConfigError
from core.kv import DTYPE_BYTES, KVLayout

logger = logging.getLogger(__name__)

SWITCH = "PENSTOCK_FAULT_FLIP_KV_BYTE"

FAR_OFF = 0x44
"""The last byte of 512 and more in float32 and bfloat16, of 4 and more in float16."""

Block = npt.NDArray[np.uint8]


class Faults(Protocol):
    """What may happen to a block between its copy and its use; each is told the block, writable."""

    def after_copy(self, block: Block) -> None:
        """The bytes are in our block; nothing has been compared yet."""
        ...

    def after_check(self, block: Block) -> None:
        """The bytes were found to be right."""
        ...


class NoFaults:
    """Nothing happens."""

    def after_copy(self, block: Block) -> None:
        """Nothing."""

    def after_check(self, block: Block) -> None:
        """Nothing."""


class FlipMode(Enum):
    """When the byte is flipped."""

    BEFORE_CHECK = "1"
    AFTER_CHECK = "2"


class FlipOneByte:
    """Spoils the sign and exponent of a value of a block: of layer 0, head 0, its first token.

    Values enter every later sum, and a number of usual size becomes some hundreds (in f16: some units): far off, and
    yet no infinity, which the sampler would find.
    """

    def __init__(self, mode: FlipMode, layout: KVLayout) -> None:
        itemsize = DTYPE_BYTES[layout.dtype]
        self._mode = mode
        self._offset = layout.block_size * layout.head_dim * itemsize + itemsize - 1
        self._done = False

    def after_copy(self, block: Block) -> None:
        """Flip now, if this is mode 1 and the first block."""
        self._flip(block, FlipMode.BEFORE_CHECK)

    def after_check(self, block: Block) -> None:
        """Flip now, if this is mode 2."""
        self._flip(block, FlipMode.AFTER_CHECK)

    def _flip(self, block: Block, mode: FlipMode) -> None:
        if mode is self._mode and not self._done:
            self._done = mode is FlipMode.BEFORE_CHECK
            at = self._offset % len(block)  # a peer's own blocks may be smaller
            block[at] = FAR_OFF if block[at] != FAR_OFF else 0
            logger.error("%s=%s: spoiled byte %d of a transferred KV block", SWITCH, mode.value, at)


def faults_from_environment(layout: KVLayout, environment: Mapping[str, str] = os.environ) -> Faults:
    """The faults that the environment asks for; read once, when a transport is made. Raises ConfigError."""
    asked = environment.get(SWITCH, "")
    if asked in ("", "0"):
        return NoFaults()
    try:
        mode = FlipMode(asked)
    except ValueError:
        raise ConfigError([f"{SWITCH} must be 0, 1 or 2, not {asked!r}"]) from None
    logger.error("%s=%s: THIS PROCESS WILL DAMAGE KV ON PURPOSE; never set it where answers matter", SWITCH, asked)
    return FlipOneByte(mode, layout)
