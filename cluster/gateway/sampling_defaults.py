"""What a model's own `generation_config.json` says of sampling: the defaults of requests that do not say it."""

import json
from dataclasses import fields
from pathlib import Path

from cluster.api.v1.inference_pb2 import SamplingParams as SamplingMessage
from cluster.gateway.errors_wire import FieldError
from cluster.gateway.limits import NO_DEFAULTS, SamplingDefaults
from cluster.gateway.sampling_checks import read_sampling
from core.errors import ConfigError

FILE = "generation_config.json"
MODELS_OWN, NOBODYS = "auto", "vllm"
"""vLLM's words for where defaults come from, beside a folder."""


def fill(message: SamplingMessage, defaults: SamplingDefaults) -> None:
    """Put them where the request says nothing."""
    for name, value in defaults.said():
        if not message.HasField(name):
            setattr(message, name, value)


def sampling_defaults(source: str, model: Path, vocab_size: int) -> SamplingDefaults:
    """Those of a source: the model's own where its folder has any, nobody's, or a folder's, which must have them.

    Raises ConfigError where they cannot be read, or a request could not ask for the same.
    """
    if source == NOBODYS:
        return NO_DEFAULTS
    path = (model if source == MODELS_OWN else Path(source).expanduser()) / FILE
    if source == MODELS_OWN and not path.is_file():
        return NO_DEFAULTS
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        names = [field.name for field in fields(SamplingDefaults)]
        defaults = SamplingDefaults(**{name: told[name] for name in names if told.get(name) is not None})
        message = SamplingMessage()
        fill(message, defaults)
        read_sampling(message, vocab_size, 1, 1)
    except FieldError as error:
        raise ConfigError([f"--generation-config: {path}: {error.message.removeprefix('sampling.')}"]) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError([f"--generation-config: {path} cannot be read: {error}"]) from error
    return defaults
