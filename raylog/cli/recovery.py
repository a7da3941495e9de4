"""Commands for the worst day: the catalog made anew, and the keys backed up before and restored after."""

import time
from pathlib import Path
from typing import Annotated

import typer

from raylog import screen
from raylog.cli.options import Json, Options
from raylog.spec import parse_backup
from raylog.units import format_bytes

catalog_app = typer.Typer(help="What to do for the catalog itself.", no_args_is_help=True)
keys_app = typer.Typer(help="Backups of the cluster's keys.", no_args_is_help=True)


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
