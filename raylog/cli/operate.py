"""Commands for whoever runs raylog: begin and end it, look at it, serve from it, place jobs."""

import os
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from raylog import screen
from raylog.cli.options import Json, Options
from raylog.errors import UsageError
from raylog.units import parse_bytes, parse_seconds

app = typer.Typer()


@app.command()
def up(
    prepare: Annotated[bool, typer.Option("--prepare", help="only make keyring, authority and join token")] = False,
    insecure_ray: Annotated[
        bool, typer.Option("--insecure-ray", help="accept a Ray cluster that anybody who reaches its port can use")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start raylog on the Ray cluster of this machine (the head): actors, one node actor per Ray node, keys."""
    from raylog.actors import bootstrap
    from raylog.api import operate

    settings = Options.settings()
    if prepare:
        bootstrap.prepare(settings)
        if not as_json:
            token = settings.join_token_path
            screen.out.print(f"prepared {settings.state}; other machines need {token} at the same place", markup=False)
        return
    screen.claim_standard_output()
    with screen.waiting("starting raylog", enabled=not as_json):
        nodes = operate.up(Options.address, settings, allow_open_ray=insecure_ray)
    if as_json:
        screen.print_json(nodes)
    else:
        screen.out.print(f"raylog runs on {len(nodes)} node(s); 'raylog status' shows them")


@app.command()
def standby() -> None:
    """On another machine that has the cluster's keys: stand by to take the head's place.

    It keeps what the head acknowledges, and runs the head's actors when the head is lost. Bring the keys there first,
    by 'raylog keys backup' and 'raylog keys restore'."""
    from raylog.api import operate

    screen.claim_standard_output()
    with screen.waiting("bringing the standby up to date"):
        operate.stand_by(Options.address)
    screen.out.print("this machine stands by, and has all that the head has; 'raylog status' shows it")


@app.command()
def down() -> None:
    """End raylog's actors on this cluster. What is stored stays on the disks."""
    from raylog.api import operate

    screen.claim_standard_output()
    operate.down(Options.address)
    screen.out.print("raylog is down; stored data stays where it is, 'raylog up' brings it back")


@app.command()
def gateway(
    host: Annotated[
        str, typer.Option(help="address to listen at; others than this machine reach any but 127.0.0.1")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free", min=0, max=65535)] = 8470,
    token_file: Annotated[
        Path | None, typer.Option(help="made at the first start; default: gateway/token in the state directory")
    ] = None,
    upload_bytes_max: Annotated[str, typer.Option(help="largest upload")] = "64GiB",
    certificate: Annotated[Path | None, typer.Option(help="PEM; with --key: HTTPS, TLS 1.3")] = None,
    key: Annotated[Path | None, typer.Option(help="of the certificate, PEM without a password")] = None,
) -> None:
    """Serve artifacts over HTTP to whoever has the token, until Ctrl-C or SIGTERM.

    PUT /v1/artifacts/NAME, or POST with a form's field 'file', stores a version of one file. GET and HEAD of NAME or
    NAME@3 give it, with Range and gzip; a table as Accept says.

    NAME@3/files lists files, NAME@3/files/PATH is one; DELETE deletes; GET /v1/artifacts?prefix= and /v1/versions/NAME
    list."""
    from raylog.security.private_files import make_private_directory
    from raylog.web.access import open_token
    from raylog.web.server import GatewayOptions, check_host, open_tls, serve

    folder = Options.settings().state / "gateway"
    token_path = (token_file or folder / "token").expanduser()
    bytes_max, address, tls = parse_bytes(upload_bytes_max), check_host(host), open_tls(certificate, key)
    make_private_directory(folder)
    options = GatewayOptions(
        token=open_token(token_path),
        spool=folder / "spool",
        host=address,
        port=port,
        tls=tls,
        upload_bytes_max=bytes_max,
    )
    if options.is_exposed and tls is None:
        screen.err.print(
            f"raylog: {address} is not this machine alone, and token and content travel as plain HTTP: give "
            "--certificate and --key, or put a proxy with TLS before it",
            markup=False,
            style="yellow",
            soft_wrap=True,
        )
    with Options.connect() as client:
        serve(
            client, options, lambda url: screen.out.print(f"{url}: curl -H @{token_path}", markup=False, soft_wrap=True)
        )


@app.command()
def status(
    paths: Annotated[bool, typer.Option("--paths", help="the ways between nodes, and what was decided why")] = False,
    tiers: Annotated[bool, typer.Option("--tiers", help="every tier of every node, and how its device does")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="with --tiers: try what the devices can do now")] = False,
    events: Annotated[bool, typer.Option("--events", help="what happened and was decided on all nodes")] = False,
    since: Annotated[str | None, typer.Option(help="how far back --events goes, such as 90s or 2h; default 1h")] = None,
    as_json: Json = False,
) -> None:
    """Show nodes, tiers, GPUs, transfers and what is wrong."""
    from raylog.api import operate

    chosen = [name for name, is_asked in (("--paths", paths), ("--tiers", tiers), ("--events", events)) if is_asked]
    if len(chosen) > 1:
        raise UsageError(f"expected one of --paths, --tiers and --events, got {' and '.join(chosen)}")
    if measure and not tiers:
        raise UsageError("--measure is for --tiers: give both")
    if since and not events:
        raise UsageError("--since says how far back --events goes: give both")
    since_s = time.time() - parse_seconds(since or "1h")
    screen.claim_standard_output()
    if tiers:
        with Options.connect(quiet=as_json) as client:
            samples = client.measure_disks() if measure else client.telemetry()
        if as_json:
            screen.print_json({sample.node_id: sample.tiers for sample in samples})
        else:
            screen.show_tiers(samples)
        return
    if paths:
        ways = operate.paths(Options.address)
        show = screen.print_json if as_json else screen.show_paths
        show(ways)
        return
    if events:
        happened = operate.events(Options.address, since_s)
        (screen.print_json if as_json else screen.show_events)(happened)
        return
    found = operate.status(Options.address)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_status(found)


@app.command()
def place(
    file: Annotated[Path, typer.Argument(help="placement file (YAML or JSON): jobs, nodes, quotas")],
    objective: Annotated[str, typer.Option(help="waste: least shortfall, then least waste")] = "waste",
    time_limit: Annotated[str, typer.Option(help="of the solver, such as 10s")] = "10s",
    as_json: Json = False,
) -> None:
    """Solve an allocation of jobs to nodes and explain it.

    A file with nodes needs no cluster. Without them the cluster's live capacity is used, and the notes say which node
    gives less than it has, and why.
    """
    from raylog.placement.explain import explain
    from raylog.placement.model import Problem, is_complete
    from raylog.placement.reading import read_document
    from raylog.placement.solve import solve

    demands, time_limit_s = read_document(file.expanduser()), parse_seconds(time_limit)
    if is_complete(demands):
        plan = solve(Problem.from_mapping(demands, str(file)), objective=objective, time_limit_s=time_limit_s)
    else:
        Problem.without_nodes(demands, str(file))  # a mistake is named before anything is started
        with Options.connect(quiet=as_json) as client:
            plan = client.place(demands, objective, time_limit_s=time_limit_s)
    if as_json:
        screen.print_json(plan)
    else:
        screen.out.print(explain(plan), markup=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: Python, Ray, tokens, ports, /dev/shm, keyring, clock, GPUs; say how to fix what is wrong."""
    from raylog.api.doctor import checks

    found = checks(Options.settings())
    if as_json:
        screen.print_json(found)
    else:
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        screen.print_table(
            ["", "check", "found", "to fix"], [[marks[item.status], item.name, item.found, item.fix] for item in found]
        )
    if any(item.status == "fail" for item in found):
        raise typer.Exit(1)


@app.command()
def demo(
    source: Annotated[str | None, typer.Option(help="path or URL to ship instead of Python's standard library")] = None,
    as_json: Json = False,
) -> None:
    """Three Ray nodes on this machine: put, ship, kill a node, read back, heal; a report; nothing is left behind."""
    # Ray reads these when it is first imported: a cluster of the demo's own asks for a token of its own.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    from raylog.demo import run_demo

    with screen.others_silenced():  # Ray tells of the node that is killed on purpose
        report = run_demo(source, lambda step: None if as_json else screen.out.print(step + " …", markup=False))
    if as_json:
        screen.print_json(report)
    else:
        screen.show_demo(report)
