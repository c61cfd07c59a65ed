"""Where the kernels' source is; `core/native_build.py` compiles it."""

from pathlib import Path

from core import native_build

SOURCE = Path(__file__).with_name("kernels.c")


def built_library() -> Path:
    """The compiled library, compiled now if it is not in the cache. Raises BuildFailed."""
    return native_build.built_library(SOURCE)
