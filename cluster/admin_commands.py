"""`penstock status | top | role | ratio | drain | decisions`: a running cluster from the outside, by its admin port."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping

import grpc
from google.protobuf import json_format
from rich.live import Live

from cluster.admin_view import cluster_view, decision_line
from cluster.api.v1 import admin_pb2 as pb
from cluster.client_flags import credentials
from cluster.console import OUT
from cluster.gateway.admin_client import AdminClient
from cluster.gateway.client import CallFailed
from cluster.gateway.ratio import roles_for, roles_now, slot_of
from core.errors import ConfigError

Act = Callable[[argparse.Namespace, AdminClient], int]


def run_admin(args: argparse.Namespace) -> int:
    """Runs the command `args.act`; its exit status. Raises ConfigError."""
    act: Act = ACTS[args.act]
    with AdminClient(args.admin_address, credentials(args)) as client:
        try:
            return act(args, client)
        except CallFailed as error:
            return _fail(error, args.admin_address)


def show_status(args: argparse.Namespace, client: AdminClient) -> int:
    """Prints the cluster once; 1 where it does not serve."""
    answer = client.get_cluster()
    if args.json:
        print(
            json_format.MessageToJson(
                answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
    else:
        OUT.print(cluster_view(answer))
    return int(not answer.cluster.serving)


def show_top(args: argparse.Namespace, client: AdminClient) -> int:
    """Keeps the cluster on the terminal until it is interrupted, or `--num-updates` are shown."""
    with Live(cluster_view(client.get_cluster()), console=OUT, auto_refresh=False, screen=OUT.is_terminal) as live:
        shown = 1
        while args.num_updates is None or shown < args.num_updates:
            time.sleep(args.interval)
            live.update(cluster_view(client.get_cluster()), refresh=True)
            shown += 1
    return 0


def show_decisions(args: argparse.Namespace, client: AdminClient) -> int:
    """Prints the last decisions, and with `--follow` those to come."""
    if not args.follow:
        for decision in client.get_cluster().cluster.decisions:
            print(decision_line(decision))
        return 0
    for told in client.watch_decisions(args.num_past):
        print(decision_line(told.decision), flush=True)
    return 0


def set_role(args: argparse.Namespace, client: AdminClient) -> int:
    """Gives one slot a role by hand, or back with `auto`."""
    slot = slot_of(args.node)
    if args.role == "auto":
        client.lift_mixes([slot])
        print(f"{slot}: given back to the controller")
        return 0
    mix = pb.SlotMix(
        slot=slot,
        role=args.role,
        prefill_tokens_per_step=args.prefill_tokens_per_step,
        max_decode_rows=args.max_decode_rows,
    )
    client.set_mixes([mix], args.force)
    print(f"{slot}: {args.role}, by hand; `penstock role {slot} auto` gives it back")
    return 0


def set_ratio(args: argparse.Namespace, client: AdminClient) -> int:
    """Gives all slots their roles by hand, or all back with `auto`. Raises ConfigError."""
    if args.ratio == "auto":
        client.lift_mixes()
        print("all nodes: given back to the controller")
        return 0
    open_slots = roles_now(client.get_cluster())
    wanted = roles_for(args.ratio, open_slots)
    client.set_mixes([pb.SlotMix(slot=slot, role=role) for slot, role in wanted.items()])
    for slot, role in wanted.items():
        print(f"{slot}: {open_slots[slot] or 'no node yet'} -> {role}")
    return 0


def drain_node(args: argparse.Namespace, client: AdminClient) -> int:
    """Empties a node; 1 where attempts were left. With `--host`: every node of a host, which may have none."""
    if (args.node is None) is (args.host is None):
        raise ConfigError(["name the node to drain, or a host by --host"])
    if args.node is not None:
        return _drain_slot(args, client, slot_of(args.node))
    slots = [slot.name for slot in client.get_cluster().slots if slot.host == args.host]
    print(f"{args.host}: {', '.join(slots) or 'no node is there'}")
    return max([_drain_slot(args, client, slot) for slot in slots], default=0)


def _drain_slot(args: argparse.Namespace, client: AdminClient, slot: str) -> int:
    num_left = client.drain(slot, args.force, args.timeout, args.for_restart)
    if num_left:
        print(f"penstock: {slot} is closed, and {num_left} attempts were left in it", file=sys.stderr)
        return 1
    until = "its node is ended" if args.for_restart else f"`penstock role {slot} ROLE` or `auto`"
    print(f"{slot}: empty, and closed until {until}")
    return 0


ACTS: Mapping[str, Act] = {
    "status": show_status,
    "top": show_top,
    "decisions": show_decisions,
    "role": set_role,
    "ratio": set_ratio,
    "drain": drain_node,
}


def _fail(error: CallFailed, address: str) -> int:
    print(f"penstock: error ({error.code}): {error.message}", file=sys.stderr)
    if error.status is grpc.StatusCode.UNAVAILABLE:
        hint = "`penstock serve` prints its admin address; give it by --admin-address"
        print(f"penstock: next: does a server listen at {address}? {hint}", file=sys.stderr)
    elif error.code in ("invalid_api_key", "admin_forbidden"):
        hint = "give an operator's key by --api-key-file (made by `penstock keys new --admin`)"
        print(f"penstock: next: {hint}", file=sys.stderr)
    return 1
