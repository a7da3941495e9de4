"""What commands have in common: the options before a command's name, the artifact's name, and `--json`."""

from pathlib import Path
from typing import Annotated

import typer

import raylog
from raylog import screen
from raylog.settings import Settings, load_settings
from raylog.spec import parse_reference

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
