"""When the controller runs, and what its flags refuse."""

import pytest

from cluster.cli import _parser
from cluster.controller_flags import controller_config
from core.errors import ConfigError
from core.request import SLO
from scheduler.controller import ControllerConfig


def configured(*flags: str) -> ControllerConfig | None:
    """What `penstock serve` makes of flags."""
    return controller_config(_parser().parse_args(["serve", *flags]))


def test_it_runs_where_no_layout_is_fixed() -> None:
    assert configured() is not None
    assert configured("--prefill", "1", "--decode", "1") is None
    assert configured("--aggregated", "2") is None
    assert configured("--controller", "off") is None


def test_a_layout_may_be_where_it_begins() -> None:
    config = configured("--prefill", "2", "--decode", "1", "--controller", "advise", "--ttft-slo", "0.5")
    assert config is not None
    assert config.advises
    assert config.slo == SLO(0.5, 0.1)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        configured("--ttft-slo", "0", "--tpot-slo", "nan", "--min-prefill-nodes", "0", "--min-decode-nodes", "3")
    assert len(refused.value.problems) == 4
