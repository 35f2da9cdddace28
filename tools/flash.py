"""`relief flash`: bundles, root folders, ssh."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from device_runtime.bundle import BadBundle
from protocol.errors import ConfigError
from tools.flashing.targets import TARGETS, target

app = typer.Typer(no_args_is_help=True, help="Put the device runtime onto boards.")

Device = Annotated[str | None, typer.Argument(help="The [[device]] it is for; without one, a bundle for updates.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="The fleet's configuration file.")]
TargetName = Annotated[str, typer.Option("--target", help=f"One of {', '.join(TARGETS)}.")]
Torch = Annotated[bool, typer.Option("--with-torch", help="Bring torch for a board that has none.")]
Extra = Annotated[list[str] | None, typer.Option(help="Further extras: ble, serial; repeatable.")]
Secrets = Annotated[bool, typer.Option("--include-credentials", help="Pack the device's key; else it makes its own.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend is one line and exit code 2."""
    try:
        yield
    except (BadBundle, ConfigError, ValueError) as error:
        typer.secho(f"relief: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@app.command()
def bundle(
    device: Device = None,
    to: TargetName = "jetpack6",
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Folder of the archive.")] = Path("bundles"),
    with_torch: Torch = False,
    include_credentials: Secrets = False,
    extra: Extra = None,
    lock: Annotated[Path | None, typer.Option(help="requirements.txt of an earlier bundle: the same versions.")] = None,
    wheel: Annotated[Path | None, typer.Option(help="The project's wheel, instead of building it.")] = None,
) -> None:
    """Pack all that a board needs into one archive that installs without a network.

    Example: relief flash bundle wrist-1 --config fleet.toml --target jetpack6
    """
    from tools.flashing.bundle import pack
    from tools.flashing.configuration import device_files
    from tools.flashing.wheelhouse import build, gather, look_into

    with one_line_errors():
        began, wanted = time.monotonic(), target(to)
        files, fleet = {}, ""
        if device is not None:
            if config is None:
                raise ValueError(f"--config is missing: the file that has the [[device]] {device}")
            files = device_files(config, device, credentials=include_credentials)
            fleet = _fleet(config, device)
        extras = tuple({"infer", *(extra or []), *(["train"] if with_torch else [])})
        with tempfile.TemporaryDirectory(prefix="relief-bundle-") as scratch:
            if wheel is not None:
                look_into(wheel)
            project = wheel or build(Path(scratch) / "project")
            wheels = gather(wanted, project, Path(scratch) / "wheels", extras=extras, lock=lock)
            made = pack(wanted, wheels, out, fleet=fleet, device=device or "", config=files)
        typer.echo(
            f"{made.path}  {made.size / 1e6:.1f} MB, {len(made.manifest.files)} files, {time.monotonic() - began:.1f} s"
        )
        typer.echo(f"sha256 {made.digest}")
        typer.echo(f"{wanted.name}: {wanted.about}")
        if "wants-identity" in files:
            typer.echo("It holds no key: the board makes one, and a request for `relief broker add --csr`.")


@app.command()
def verify(archive: Annotated[Path, typer.Argument(help="A bundle.", exists=True, dir_okay=False)]) -> None:
    """Look at every file of a bundle as a board would.

    Example: relief flash verify bundles/relief-wrist-1-jetpack6-0.1.0.tar
    """
    from device_runtime.bundle import file_digest, unpack

    with one_line_errors(), tempfile.TemporaryDirectory(prefix="relief-verify-") as scratch:
        manifest = unpack(archive, Path(scratch) / "bundle")
        typer.echo(f"{len(manifest.files)} files verified: {manifest.runtime} for {manifest.target}, {manifest.python}")
        typer.echo(f"sha256 {file_digest(archive)}")


def _fleet(config: Path, device: str) -> str:
    from device_runtime.config import settings

    return settings(config, device).fleet
