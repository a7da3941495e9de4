"""Commands for what is stored: put, get, list, keep, delete, copy and check it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from raylog import screen
from raylog.catalog.retention import Retention
from raylog.cli.options import Json, Name, Options
from raylog.codec.pieces import parse_erasure
from raylog.errors import DamagedData, UsageError
from raylog.spec import parse_backup, parse_labels, parse_name, parse_reference
from raylog.units import format_bytes, format_rate, format_seconds, parse_seconds

app = typer.Typer()


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
