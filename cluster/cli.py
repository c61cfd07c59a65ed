"""The command line: `penstock serve | generate | demo | simulate | tune | replay | trace | profile | bench | …`."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cluster.access_flags import access_sentence, add_access_flags
from cluster.admin_flags import add_admin_commands
from cluster.bench.flags import add_bench_flags
from cluster.client_flags import add_client_flags
from cluster.config_flags import add_config_command
from cluster.config_layers import read_arguments
from cluster.config_table import add_config_flag
from cluster.console import OUT, StartProgress, print_error
from cluster.controller_flags import add_controller_flags
from cluster.flags import DEFAULT_PORT, add_address_flags, add_cluster_flags
from cluster.fleet_flags import add_simulate_flags, add_tune_flags
from cluster.gateway_flags import add_gateway_flags, add_head_flags
from cluster.http_flags import add_http_flags, add_node_headers_flag
from cluster.keys_flags import add_keys_flags
from cluster.kube_flags import add_kube_flags
from cluster.observe_flags import add_observe_flags
from cluster.profile_flags import add_profile_flags
from cluster.sampling_flags import add_sampling_flags
from cluster.text_flags import add_chat_flags, add_run_batch_flags
from cluster.trace_flags import add_trace_flags
from core.errors import PenstockError
from core.timers import Timers

if TYPE_CHECKING:
    from cluster.service import Service, ServiceConfig

EXIT_FAILED = 1
EXIT_BAD_CONFIG = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

KV_WAYS_S = 3.0
"""How long the start waits for nodes to say by what they read each other; usually they need a fifth of it."""


class _Parser(argparse.ArgumentParser):
    """Takes flags by their whole names only: a mistyped `--prefil` is an error, not a guess."""

    def __init__(self, *, prog: str, description: str | None = None) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0 well, 1 failed, 2 wrong flags or configuration, 130 interrupted.

    141: whoever read the output went away.
    """
    try:
        args = read_arguments(_parser(), argv, os.environ).args
        logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads has enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except PenstockError as error:
        print_error(error)
        return EXIT_BAD_CONFIG if error.fault in ("operator", "caller") else EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="penstock", description="Disaggregated prefill/decode serving for LLMs.")
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("--log-level", choices=levels, default="warning", help="of this process and its nodes")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    serve = commands.add_parser("serve", help="start a cluster, answer OpenAI and gRPC requests")
    _add_serve_flags(serve)
    add_config_flag(serve, (parser,))
    serve.set_defaults(run=_serve)
    gateway = commands.add_parser("gateway", help="a further gateway of a cluster that another process serves")
    add_gateway_flags(gateway)
    add_config_flag(gateway, (parser,), passed_over=(serve,))
    gateway.set_defaults(run=_gateway)
    config = commands.add_parser("config", help="show, check and begin the configuration of `serve`")
    add_config_command(config, parser, _add_serve_flags, gateway)

    generate = commands.add_parser("generate", help="send one prompt to a running server, print the answer as it comes")
    _add_generate_flags(generate)
    generate.set_defaults(run=_generate)

    add_chat_flags(commands.add_parser("chat", help="talk with a running server; from a pipe, one message"))
    batch = commands.add_parser("run-batch", help="answer a file of requests, as one of OpenAI's batches")
    add_run_batch_flags(batch)

    demo = commands.add_parser("demo", help="start a cluster, stream answers, check them, print a goodput table")
    add_cluster_flags(demo)
    add_address_flags(demo, default_port=0)
    demo.add_argument("--json", metavar="FILE", default=None, help="write figures and raw samples here")
    demo.add_argument("--rates", type=float, nargs="+", default=[2.0, 6.0], help="request rates of the goodput table")
    demo.add_argument(
        "--load-seconds", type=float, default=6.0, help="length of each cell of the goodput table; 0: none"
    )
    demo.add_argument("--ttft-slo", type=float, default=0.5, metavar="SECONDS", help="of the goodput table")
    demo.add_argument("--tpot-slo", type=float, default=0.02, metavar="SECONDS", help="of the goodput table")
    demo.set_defaults(run=_demo)

    profile = commands.add_parser("profile", help="measure a model on this machine, write its cost table")
    add_profile_flags(profile)
    profile.set_defaults(run=_profile)

    simulate = commands.add_parser("simulate", help="serve a workload in virtual time: goodput, percentiles, losses")
    add_simulate_flags(simulate)
    simulate.set_defaults(run=_simulate)

    tune = commands.add_parser("tune", help="find the best fixed layout, chunks and parallel sizes for an SLO")
    add_tune_flags(tune)
    tune.set_defaults(run=_tune)

    replay = commands.add_parser("replay", help="put a record of `serve --record` through the same scheduler, compare")
    replay.add_argument("file", help="the record")
    replay.add_argument("--json", metavar="FILE", default=None, help="write the differences here")
    replay.set_defaults(run=_replay)

    trace = commands.add_parser("trace", help="workloads as files; where the time of the last requests went")
    add_trace_flags(trace)

    bench = commands.add_parser("bench", help="measure Penstock, arms alternated, beside the machine's own limits")
    add_bench_flags(bench)

    add_admin_commands(commands)
    keys = commands.add_parser("keys", help="mint API keys, and look at those that an access file has")
    add_keys_flags(keys)

    doctor = commands.add_parser("doctor", help="check this machine and say what to do about what is wrong")
    doctor.add_argument("--json", metavar="FILE", default=None, help="write the findings here")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """All that `serve` can be told; each flag is a key of its configuration file, too."""
    add_cluster_flags(parser)
    add_address_flags(parser)
    add_http_flags(parser)
    add_node_headers_flag(parser)
    add_access_flags(parser)
    add_head_flags(parser)
    add_controller_flags(parser)
    add_kube_flags(parser)
    add_observe_flags(parser)
    parser.add_argument(
        "--record", metavar="FILE", default=None, help="write what the scheduler hears and says here, for replay"
    )
    parser.add_argument("--record-max-mb", type=float, default=256.0, metavar="MB", help="the record ends at this size")


def _add_generate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text; '-' reads standard input")
    parser.add_argument("--address", default=f"127.0.0.1:{DEFAULT_PORT}", help="of the server")
    parser.add_argument("--raw", action="store_true", help="send the text as it is, without the model's chat template")
    parser.add_argument("--model", default="", help="the served model's name (default: whichever is served)")
    add_sampling_flags(parser)
    parser.add_argument("--timing", action="store_true", help="print where the time went, on standard error")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    add_client_flags(parser)


def _serve(args: argparse.Namespace) -> int:
    return asyncio.run(_serve_until_signal(args))


async def _serve_until_signal(args: argparse.Namespace) -> int:
    from cluster.live.gpus import gpu_sentence
    from cluster.live.kv_ways import settled_ways
    from cluster.serve_config import checked
    from cluster.service import Service

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with StartProgress() as progress:
        service = Service(_at_work(checked(args.layers)), progress.report)
        if service.config.access_file is not None:
            loop.add_signal_handler(signal.SIGHUP, service.reload_access)
        starting = asyncio.ensure_future(service.start())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return 130
        await starting
    nodes = ", ".join(f"{state.slot} (pid {state.pid}, {state.mix.role})" for state in service.cluster.state().nodes)
    OUT.print(f"penstock: serving {service.config.served_model_name} on {service.address}; nodes: {nodes}")
    OUT.print(f"penstock: {service.pool.sentence()}")
    if sentence := gpu_sentence(service.config.live, service.gpus):
        OUT.print(f"penstock: {sentence}")
    OUT.print(f"penstock: try: penstock generate --address {service.address} 'What is a penstock?'")
    if service.http is not None:
        OUT.print(f"penstock: OpenAI: {service.http.url}/v1 (what there is: {service.http.url}/docs)")
        OUT.print(f"penstock: try: {service.http.first_curl}")
        OUT.print(f"penstock: dashboard: {service.http.url}/dashboard; metrics: {service.http.url}/metrics")
    if service.metrics is not None:
        OUT.print(f"penstock: metrics without a key: {service.metrics.url}")
    for sentence in await settled_ways(lambda: service.cluster.state().nodes, KV_WAYS_S):
        OUT.print(f"penstock: {sentence}")
    if service.admin is not None:
        OUT.print(f"penstock: operators: penstock status --admin-address {service.admin.address}")
    if service.admin_http is not None:
        OUT.print(f"penstock: operators over HTTP: {service.admin_http.url}/docs")
    OUT.print(f"penstock: access: {access_sentence(service.config)}")
    if service.cluster.address:
        joins = (
            f"penstock gateway --join {service.cluster.address} --cluster-token-file {service.config.live.token_file}"
        )
        OUT.print(f"penstock: further gateways: {joins}")
    broken = asyncio.ensure_future(service.cluster.broken())
    await asyncio.wait({stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
    if broken.done():
        print(f"penstock: an invariant is broken, stopping: {broken.result()}", file=sys.stderr)
        await service.stop()
        return EXIT_FAILED
    broken.cancel()
    OUT.print(f"penstock: stopping; open requests may take up to {Timers().drain_s:g} s (again to stop at once)")
    await _stop_unless_asked_again(service, stop)
    return 0


def _at_work(config: "ServiceConfig") -> "ServiceConfig":
    """On Kubernetes with the nodes that there are, not those that it began with once."""
    if config.kube is None:
        return config
    from cluster.kube.settings import with_slots_of

    return replace(config, live=with_slots_of(config.live, config.kube))


async def _stop_unless_asked_again(service: "Service", stop: asyncio.Event) -> None:
    stop.clear()
    gently = asyncio.ensure_future(service.stop(grace_s=Timers().drain_s))
    again = asyncio.ensure_future(stop.wait())
    await asyncio.wait({gently, again}, return_when=asyncio.FIRST_COMPLETED)
    if not gently.done():
        gently.cancel()
        await asyncio.gather(gently, return_exceptions=True)
        await service.cluster.stop()
    again.cancel()


def _gateway(args: argparse.Namespace) -> int:
    from cluster.gateway_command import run_gateway

    return asyncio.run(run_gateway(args))


def _generate(args: argparse.Namespace) -> int:
    from cluster.generate import generate

    return generate(args)


def _demo(args: argparse.Namespace) -> int:
    from cluster.demo import run_demo

    return asyncio.run(run_demo(args))


def _profile(args: argparse.Namespace) -> int:
    from cluster.profile_command import run_profile

    return run_profile(args)


def _simulate(args: argparse.Namespace) -> int:
    from cluster.simulate_command import run_simulate

    return run_simulate(args)


def _tune(args: argparse.Namespace) -> int:
    from cluster.tune_command import run_tune

    return run_tune(args)


def _replay(args: argparse.Namespace) -> int:
    from cluster.replay_command import run_replay

    return run_replay(args)


def _doctor(args: argparse.Namespace) -> int:
    from cluster.doctor import run_doctor

    return run_doctor(args.json)


if __name__ == "__main__":
    sys.exit(main())
