"""Policies by the names that the command line takes."""

from core.errors import ConfigError
from scheduler.config import SchedulerConfig
from scheduler.policies.goodput import Goodput
from scheduler.policies.least_loaded import LeastLoaded
from scheduler.policies.policy import Policy
from scheduler.policies.prefix_aware import PrefixAware
from scheduler.policies.round_robin import RoundRobin

POLICY_NAMES = ("goodput", "prefix_aware", "least_loaded", "round_robin")
DEFAULT_POLICY = "goodput"


def policy_of(name: str, config: SchedulerConfig = SchedulerConfig()) -> Policy:  # noqa: B008 - frozen
    """The policy of a name, for a scheduler of this configuration. Raises ConfigError for a name that there is not."""
    match name:
        case "goodput":
            return Goodput(config)
        case "prefix_aware":
            return PrefixAware()
        case "least_loaded":
            return LeastLoaded()
        case "round_robin":
            return RoundRobin()
    raise ConfigError([f"policy {name!r} is unknown; there are {', '.join(POLICY_NAMES)}"])
