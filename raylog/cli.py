"""The `raylog` command: one function per command, thin over the client."""

import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import raylog
from raylog import screen
from raylog.catalog.retention import Retention
from raylog.codec.pieces import parse_erasure
from raylog.errors import DamagedData, RaylogError, UsageError
from raylog.settings import Settings, load_settings
from raylog.spec import parse_backup, parse_labels, parse_name, parse_reference
from raylog.units import format_bytes, format_rate, format_seconds, parse_bytes, parse_seconds

INTERRUPTED = 130
MISUSED: tuple[type[Exception], ...] = typer.BadParameter.__bases__  # Typer's usage errors, which it does not export
app = typer.Typer(
    name="raylog",
    help="Gets datasets, checkpoints and weights to the machines of a Ray cluster: sealed, verified, replicated.\n\n"
    "Exit status: 0 done, 1 failed, 2 bad usage, 3 damaged data, 4 not permitted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

catalog_app = typer.Typer(help="What to do for the catalog itself.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
keys_app = typer.Typer(help="Backups of the cluster's keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@NUMBER]",
        help="an artifact, or one version of it",
        callback=lambda text: str(parse_reference(text)),  # before anything is started
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of text")]


class Options:
    """What was given before the command's name."""

    address: str | None = None
    config: Path | None = None
    state: Path | None = None

    @classmethod
    def settings(cls) -> Settings:
        return load_settings(cls.config, state=cls.state)

    @classmethod
    def connect(cls, *, quiet: bool = False) -> "raylog.Client":
        screen.claim_standard_output()
        with screen.waiting("connecting to raylog", enabled=not quiet):
            return raylog.connect(cls.address, settings=cls.settings())


@app.callback()
def options(
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster, such as 192.0.2.10:6379; default: $RAY_ADDRESS, then this machine's"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="raylog.toml; default: ~/.raylog/raylog.toml")] = None,
    state: Annotated[Path | None, typer.Option(help="state directory; default: ~/.raylog")] = None,
) -> None:
    Options.address, Options.config, Options.state = address, config, state


@app.command()
def put(
    name: Annotated[str, typer.Argument(help="artifact name, such as corpora/wiki", callback=parse_name)],
    source: Annotated[str, typer.Argument(help="path or URL: Parquet, Arrow, CSV, JSONL, any file or folder")],
    replicas: Annotated[int, typer.Option(help="copies on distinct nodes")] = 1,
    erasure: Annotated[
        str | None,
        typer.Option(
            help="pieces instead of replicas, such as 4+2: any 2 of 6 nodes may be lost",
            callback=lambda text: text and "+".join(map(str, parse_erasure(text))),
        ),
    ] = None,
    durability: Annotated[str, typer.Option(help="what an acknowledgement promises: memory, disk or remote")] = "disk",
    backup: Annotated[
        str | None,
        typer.Option(
            help="URL for a remote copy, such as s3://bucket/path", callback=lambda text: text and parse_backup(text)
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="of the version, KEY=VALUE; use=archive or use=checkpoint chooses its disk; repeatable"),
    ] = None,
    codec: Annotated[str, typer.Option(help="auto, none, lz4 or zstd")] = "auto",
    as_files: Annotated[bool, typer.Option("--as-files", help="keep files as they are, do not read tables")] = False,
    parent: Annotated[
        list[str] | None, typer.Option(help="a version that this one was made from, for 'raylog lineage'; repeatable")
    ] = None,
    as_json: Json = False,
) -> None:
    """Seal data and store it as the next version of NAME."""
    labels = parse_labels(label or ())
    with Options.connect(quiet=as_json) as client, screen.Bar(f"put {name}", enabled=not as_json) as bar:
        version = client.put(
            name,
            source,
            replicas=replicas,
            erasure=erasure,
            durability=durability,
            backup=backup,
            codec=codec,
            labels=labels,
            parents=parent or (),
            as_files=as_files,
            on_progress=bar,
        )
    if as_json:
        screen.print_json(version)
        return
    screen.out.print(
        f"{version}: {version.shards} shards, {version.rows} rows, {format_bytes(version.content_bytes)} stored as "
        f"{format_bytes(version.stored_bytes)}, {f'pieces {erasure}' if erasure else f'{replicas} replica(s)'}"
    )


@app.command()
def get(
    name: Name,
    path: Annotated[Path, typer.Argument(help="file or folder to write; must not exist yet")],
    as_json: Json = False,
) -> None:
    """Write a version to PATH: a table as Parquet (or .arrow, .csv, .jsonl by PATH's ending), files as they were."""
    with Options.connect(quiet=as_json) as client, screen.Bar(f"get {name}", enabled=not as_json) as bar:
        written = client.download(name, path, on_progress=bar)
    if as_json:
        screen.print_json({"paths": [str(item) for item in written]})
    else:
        screen.out.print(
            f"{name}: {len(written)} file(s) under {path}" if len(written) > 1 else f"{name}: {written[0]}"
        )


@app.command("ls")
def list_artifacts(
    prefix: Annotated[str, typer.Argument(help="only names that begin so")] = "",
    label: Annotated[list[str] | None, typer.Option(help="only with this label, KEY=VALUE; repeatable")] = None,
    versions: Annotated[bool, typer.Option("--versions", help="every version, not only the latest")] = False,
    as_json: Json = False,
) -> None:
    """List artifacts and their latest versions."""
    with Options.connect(quiet=as_json) as client:
        found = client.ls(prefix, labels=parse_labels(label or ()))
        if versions:
            found = [version for latest in found for version in client.versions(latest.name)]
    if as_json:
        screen.print_json(found)
        return
    rows: list[list[object]] = [
        [str(item), item.shards, item.rows, format_bytes(item.content_bytes), format_bytes(item.stored_bytes)]
        for item in found
    ]
    screen.print_table(
        ["version", "shards", "rows", "content", "stored"], rows, right={"shards", "rows", "content", "stored"}
    )


@app.command()
def hold(
    name: Name,
    reason: Annotated[str, typer.Option(help="why, for whoever wants to delete it")],
    as_json: Json = False,
) -> None:
    """Hold a version, or with NAME alone all that it has or will have: nobody can delete it until 'raylog release'."""
    with Options.connect(quiet=as_json) as client:
        _show_retention(name, client.hold(name, reason), as_json)


@app.command()
def release(name: Name, as_json: Json = False) -> None:
    """End the hold of a version, or of NAME as a whole."""
    with Options.connect(quiet=as_json) as client:
        _show_retention(name, client.release(name), as_json)


@app.command()
def retain(
    name: Name,
    keep: Annotated[str | None, typer.Option(help="how many versions of NAME to keep, or 'all'")] = None,
    expires: Annotated[str | None, typer.Option(help="when NAME@NUMBER is deleted, such as 30d, or 'never'")] = None,
    as_json: Json = False,
) -> None:
    """Say how long versions are kept; without options, show what is set."""
    if keep not in (None, "all") and not str(keep).isdigit():
        raise UsageError(f"expected a number of versions or 'all', got {keep!r}")
    with Options.connect(quiet=as_json) as client:
        plain = parse_reference(name).name
        if keep is not None:
            client.keep(plain, None if keep == "all" else int(keep))
        if expires is not None:
            client.expire(name, None if expires == "never" else parse_seconds(expires))
        _show_retention(name, client.retention(plain), as_json)


def _show_retention(name: str, found: Retention, as_json: bool) -> None:
    if as_json:
        screen.print_json(found)
        return
    kept = f"{found.keep} versions are kept" if found.keep else "all versions are kept"
    lines = [f"{parse_reference(name).name}: {kept}"]
    lines += [f"  held {f'@{number}' if number else 'as a whole'}: {why}" for number, why in found.holds.items()]
    for number, at_us in found.expires_us.items():
        lines.append(f"  @{number} expires {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at_us / 1e6))}")
    screen.out.print("\n".join(lines), markup=False)


@app.command()
def usage(as_json: Json = False) -> None:
    """Show what each tenant has stored."""
    with Options.connect(quiet=as_json) as client:
        found = client.usage()
    if as_json:
        screen.print_json(found)
        return
    rows: list[list[object]] = [
        [one.tenant, one.versions, *map(format_bytes, (one.content_bytes, one.stored_bytes, one.kept_bytes))]
        for one in found
    ]
    columns = ["tenant", "versions", "content", "sealed", "on nodes"]
    screen.print_table(columns, rows, right=set(columns[1:]))


@app.command()
def lineage(name: Name, as_json: Json = False) -> None:
    """Show what a version was made from, and what was made from it."""
    with Options.connect(quiet=as_json) as client:
        found = client.lineage(name)
    if as_json:
        screen.print_json(found)
    else:
        screen.show_lineage(found)


@app.command()
def rm(name: Name, as_json: Json = False) -> None:
    """Delete a version, or with NAME alone all of them. Its number is never used again."""
    with Options.connect(quiet=as_json) as client:
        deleted = client.delete(name)
    if as_json:
        screen.print_json({"deleted": [str(version) for version in deleted]})
    else:
        screen.out.print("deleted " + ", ".join(str(version) for version in deleted))


@app.command()
def ship(
    name: Name,
    to: Annotated[
        list[str] | None, typer.Option(help="node id (or its beginning); repeat for more. Default: all")
    ] = None,
    deadline: Annotated[str, typer.Option(help="give up after this time, such as 10m")] = "10m",
    pin: Annotated[bool, typer.Option("--pin", help="the copies stay until 'raylog unpin'")] = False,
    as_json: Json = False,
) -> None:
    """Copy a version to nodes, straight from the nodes that hold it."""
    deadline_s = parse_seconds(deadline)
    with Options.connect(quiet=as_json) as client, screen.Bar(f"ship {name}", enabled=not as_json) as bar:
        shipment = client.ship(name, to=to or "all", deadline_s=deadline_s, pin=pin, on_progress=bar)
        if shipment.forecast.can_meet is False:
            screen.err.print(f"raylog: too slow for the deadline: {shipment.forecast.reason}", markup=False)
        try:
            report = shipment.result(deadline_s)
        except BaseException:
            shipment.cancel()  # pulls that are under way end, no other begins
            raise
    if as_json:
        screen.print_json(report)
    else:
        screen.out.print(
            f"{name}: {format_bytes(report.moved_bytes)} to {len(report.nodes)} node(s) in "
            f"{format_seconds(report.seconds)} ({format_rate(report.moved_bytes / max(report.seconds, 1e-9))})"
        )


@app.command()
def unpin(
    name: Name,
    on: Annotated[
        list[str] | None, typer.Option(help="node id (or its beginning); repeat for more. Default: all")
    ] = None,
) -> None:
    """Let copies that were shipped with --pin give way again when room is needed."""
    with Options.connect() as client:
        client.unpin(name, on or "all")
    screen.out.print(f"{name}: no copy is pinned on {'these nodes' if on else 'any node'}", markup=False)


@app.command()
def verify(
    name: Name,
    backups: Annotated[bool, typer.Option("--backups", help="read the copies in backups too")] = False,
    as_json: Json = False,
) -> None:
    """Read every byte of every replica, replace what is damaged. Exit status 3 when that was not possible."""
    bar = screen.Bar(f"verify {name}", counts="copies", enabled=not as_json)
    with Options.connect(quiet=as_json) as client, bar:
        report = client.verify(name, backups=backups, on_progress=bar)
    if as_json:
        screen.print_json(report)
    else:
        screen.out.print(
            f"{name}: {report.chunks_read} chunks read on {report.replicas} replicas, {report.damaged} damaged, "
            f"{report.repaired} repaired"
        )
    if report.problems:
        raise DamagedData(f"{name}: {'; '.join(report.problems)}")


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


@catalog_app.command("rebuild")
def rebuild_catalog(as_json: Json = False) -> None:
    """On the head, when the catalog's journal is lost: make it anew from the copies of its records on the nodes.

    The same names, numbers and deletions; every node of the Ray cluster has to answer."""
    from raylog.api import operate

    screen.claim_standard_output()
    with screen.waiting("asking the nodes for their records", enabled=not as_json):
        report = operate.rebuild_catalog(Options.address, Options.settings())
    if as_json:
        screen.print_json(report)
    else:
        screen.out.print(
            f"the catalog is there again: {report.records} records, from node {report.node_id[:12]} of {report.nodes}"
        )


@catalog_app.command("restore")
def restore_catalog(
    url: Annotated[str, typer.Argument(help="the backup, such as s3://bucket/path", callback=parse_backup)],
    is_drill: Annotated[
        bool, typer.Option("--drill", help="only to see that it works: this cluster never writes to a backup")
    ] = False,
    as_json: Json = False,
) -> None:
    """On the head of an empty cluster that has its keys again: make the catalog anew from a backup.

    What is stored comes back to the nodes by itself then; jobs/restore.py waits for it."""
    from raylog.api import operate

    screen.claim_standard_output()
    with screen.waiting("reading the backup", enabled=not as_json):
        report = operate.restore_catalog(Options.address, Options.settings(), url, is_drill=is_drill)
    if as_json:
        screen.print_json(report)
    else:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.last_us / 1e6))
        screen.out.print(f"the catalog is there again: {report.records} records, the last of {moment}")


@keys_app.command("recovery-key")
def recovery_key(
    path: Annotated[Path, typer.Argument(help="file to write the private half to; PATH.pub gets the public one")],
) -> None:
    """Make a recovery key, for backups of the cluster's keys. Keep PATH off the cluster, in two places."""
    from raylog.security.key_backup import create_recovery_key

    public = create_recovery_key(path.expanduser())
    screen.out.print(f"{path}: keep it off the cluster; {public}: for 'raylog keys backup'", markup=False)


@keys_app.command("backup")
def back_up_keys(
    path: Annotated[Path, typer.Argument(help="file to write; must not exist yet")],
    to: Annotated[Path, typer.Option(help="the public half of a recovery key, PATH.pub")],
) -> None:
    """On the head: write a backup of the cluster's keys that only the recovery key opens. Keep it apart from the
    data."""
    from raylog.actors.bootstrap import key_paths
    from raylog.security.key_backup import back_up_keys
    from raylog.security.private_files import write_private

    data = back_up_keys(key_paths(Options.settings()), to.expanduser(), time.time())
    write_private(path.expanduser(), data, replace=False)
    screen.out.print(f"{path}: {format_bytes(len(data))}; what is sealed from now on needs a later one", markup=False)


@keys_app.command("restore")
def restore_keys(
    path: Annotated[Path, typer.Argument(help="a backup of the keys")],
    key: Annotated[Path, typer.Option(help="the private half of the recovery key")],
) -> None:
    """On the head of a new cluster, before 'raylog up': put the keys of a backup into the empty state directory."""
    from raylog.actors.bootstrap import restore_keys
    from raylog.security.key_backup import read_backup

    settings = Options.settings()
    cluster_id = restore_keys(settings, read_backup(path.expanduser()), key.expanduser())
    screen.out.print(
        f"the keys of cluster {cluster_id} are there; other machines need {settings.join_token_path} at the same "
        "place; next: 'raylog catalog restore URL'",
        markup=False,
    )


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


def main() -> None:
    """Entry point: runs a command, turns errors into one line on standard error and the exit status."""
    sys.exit(_guarded())


def _guarded() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a supervisor: clean up as after Ctrl-C
    try:
        status = app(standalone_mode=False)  # what `typer.Exit` carried, or nothing
    except MISUSED as error:
        error.show()  # type: ignore[attr-defined]  # Typer's own: usage, what was wrong, and a near match
        return UsageError.exit_status
    except RaylogError as error:
        screen.err.print(f"raylog: {error}", markup=False, style="red", soft_wrap=True)
        return error.exit_status
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this
        screen.err.print("raylog: stopped by Ctrl-C; nothing half-written is visible", markup=False)
    return status if isinstance(status, int) else 0
