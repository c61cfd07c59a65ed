"""The door to matplotlib, which only the extra `tune` brings."""

import importlib
from typing import Any, cast

from core.errors import ConfigError


def check_plotting() -> None:
    """Raises ConfigError where nothing can be drawn: at the start, not after a long run."""
    pyplot()


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files only. Raises ConfigError where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return cast(Any, importlib.import_module("matplotlib.pyplot"))
    except ImportError as error:
        raise ConfigError(["--plot needs matplotlib: pip install 'penstock[tune]'"]) from error
