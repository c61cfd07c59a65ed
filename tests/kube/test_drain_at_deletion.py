"""What a worker pod's preStop hook does: drains the nodes of its host, and leaves their slots open to the next ones."""

import pytest

from tests.service.running import running
from tests.service.test_command_line import penstock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_drain_for_a_restart_leaves_the_slot_open_to_the_next_node() -> None:
    with running("--prefill", "1", "--decode", "2") as server:
        assert server.service.admin is not None
        address = ("--admin-address", server.service.admin.address)
        before = server.nodes()["decode-1"]
        done = penstock("drain", "decode-1", "--for-restart", *address)
        assert done.returncode == 0, done.stderr
        assert "until its node is ended" in done.stdout
        server.until(lambda: server.nodes()["decode-1"].mix.role == "closed")
        server.kill("decode-1")
        server.until(lambda: "decode-1" in server.nodes() and server.nodes()["decode-1"].node != before.node)
        server.until(lambda: server.nodes()["decode-1"].mix.role == "decode")


def test_a_host_is_drained_by_its_address_and_one_without_nodes_is_empty_already() -> None:
    with running("--prefill", "1", "--decode", "1") as server:
        assert server.service.admin is not None
        address = ("--admin-address", server.service.admin.address)
        nobody = penstock("drain", "--host", "10.1.2.3", "--for-restart", "--force", *address)
        assert (nobody.returncode, "no node is there" in nobody.stdout) == (0, True)
        done = penstock("drain", "--host", "127.0.0.1", "--for-restart", "--force", *address)
        assert done.returncode == 0, done.stderr
        assert "decode-0: empty" in done.stdout and "prefill-0: empty" in done.stdout
        neither = penstock("drain", *address)
        assert neither.returncode == 2 and "--host" in neither.stderr
