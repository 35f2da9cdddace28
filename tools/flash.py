"""`relief flash`: bundles, root folders, ssh."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.flashing.targets import TARGETS, target
from tools.shown import progress

if TYPE_CHECKING:
    from tools.flashing.bundle import Bundle

app = typer.Typer(no_args_is_help=True, help="Put the device runtime onto boards.")

Device = Annotated[str | None, typer.Argument(help=r"The [\[device]] it is for; without one, a bundle for updates.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="The fleet's configuration file.")]
TargetName = Annotated[str, typer.Option("--target", help=f"One of {', '.join(TARGETS)}.")]
Torch = Annotated[bool, typer.Option("--with-torch", help="Bring torch for a board that has none.")]
Extra = Annotated[list[str] | None, typer.Option(help="Further extras: ble, serial; repeatable.")]
Secrets = Annotated[bool, typer.Option("--include-credentials", help="Pack the device's key; else it makes its own.")]


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
    began = time.monotonic()
    made = make(
        to, device, config, out,
        with_torch=with_torch, secrets=include_credentials, extra=tuple(extra or ()), lock=lock, wheel=wheel,
    )  # fmt: skip
    seconds = time.monotonic() - began
    typer.echo(f"{made.path}  {made.size / 1e6:.1f} MB, {len(made.manifest.files)} files, {seconds:.1f} s")
    typer.echo(f"sha256 {made.digest}")
    typer.echo(f"{to}: {target(to).about}")
    if "config/wants-identity" in made.manifest.files:
        typer.echo("It holds no key: the board makes one, and a signing request for the broker's CA.")


@app.command()
def verify(archive: Annotated[Path, typer.Argument(help="A bundle.", exists=True, dir_okay=False)]) -> None:
    """Look at every file of a bundle as a board would.

    Example: relief flash verify bundles/relief-wrist-1-jetpack6-0.1.0.tar
    """
    from device_runtime.bundle import file_digest, unpack

    with tempfile.TemporaryDirectory(prefix="relief-verify-") as scratch:
        manifest = unpack(archive, Path(scratch) / "bundle")
        typer.echo(f"{len(manifest.files)} files verified: {manifest.runtime} for {manifest.target}, {manifest.python}")
        typer.echo(f"sha256 {file_digest(archive)}")


@app.command()
def rootfs(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Linux_for_Tegra/rootfs, or a Debian root.", exists=True)
    ],
    device: Annotated[str, typer.Option(help=r"The [\[device]] that the board will be.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The fleet's configuration file.")],
    with_torch: Torch = False,
    include_credentials: Secrets = False,
    archive: Annotated[Path | None, typer.Option("--bundle", help="A bundle, instead of making one.")] = None,
    board: Annotated[
        str | None, typer.Option(help="NVIDIA's name of the board, for the command that comes next.")
    ] = None,
) -> None:
    """Install into an unpacked root folder without running what is in it; NVIDIA's tool writes it to the board.

    Example: relief flash rootfs Linux_for_Tegra/rootfs --device wrist-1 --config fleet.toml
    """
    from device_runtime.bundle import unpack
    from tools.flashing import rootfs as roots

    with tempfile.TemporaryDirectory(prefix="relief-rootfs-") as scratch:
        root = roots.inspect(folder)
        typer.echo(f"{folder}: {root.host.release}, {root.host.arch}, Python {root.host.python}: {root.target.name}")
        packed = archive
        if packed is None:
            made = make(
                root.target.name, device, config, Path(scratch), with_torch=with_torch, secrets=include_credentials
            )
            packed = made.path
        began = time.monotonic()
        unpacked = Path(scratch) / "bundle"
        manifest = unpack(packed, unpacked)
        told = roots.install(root, unpacked, manifest)
        typer.echo(f"{told}; {len(manifest.files)} files verified, installed in {time.monotonic() - began:.1f} s")
        typer.echo("enabled: " + ", ".join(roots.SERVICES))
        typer.echo(roots.command(root, board))


@app.command()
def ssh(
    host: Annotated[str, typer.Argument(help="As ssh takes it: user@board.")],
    device: Device = None,
    config: Config = None,
    archive: Annotated[Path | None, typer.Option("--bundle", help="A bundle, instead of making one.")] = None,
    with_torch: Torch = False,
    include_credentials: Secrets = False,
    option: Annotated[list[str] | None, typer.Option("-o", help="An option for ssh, as Port=2222; repeatable.")] = None,
    look_only: Annotated[bool, typer.Option("--look", help="Only look.")] = False,
) -> None:
    """Install or update a running board: beside the version that runs, with a way back.

    Example: relief flash ssh root@wrist-1.local wrist-1 --config fleet.toml
    """
    from device_runtime.bundle import file_digest, unpack
    from tools.flashing import ssh as remote
    from tools.flashing.rootfs import Root

    with tempfile.TemporaryDirectory(prefix="relief-ssh-") as scratch:
        link = remote.Link(host, tuple(part for one in option or [] for part in ("-o", one)))
        found = remote.look(link)
        for line in found.findings():
            typer.echo(line)
        if look_only:
            return
        packed = archive
        if packed is None:
            name = Root(Path(host), found.host).target.name
            packed = make(name, device, config, Path(scratch), with_torch=with_torch, secrets=include_credentials).path
        manifest = unpack(packed, Path(scratch) / "bundle")
        with progress(f"to {host}", packed.stat().st_size / 1e6, "MB") as step:
            stays = remote.install(
                link, found, packed, manifest, file_digest(packed), typer.echo,
                lambda sent, _: step(sent / 1e6),
            )  # fmt: skip
        typer.echo(f"{host}: {manifest.runtime} {'installed' if stays else 'was rolled back'}")
        raise typer.Exit(0 if stays else 1)


def make(
    to: str,
    device: str | None,
    config: Path | None,
    out: Path,
    *,
    with_torch: bool = False,
    secrets: bool = False,
    extra: tuple[str, ...] = (),
    lock: Path | None = None,
    wheel: Path | None = None,
) -> Bundle:
    """Build, resolve, fetch and pack one bundle below `out`. BadBundle, ConfigError or ValueError."""
    from tools.flashing.bundle import pack
    from tools.flashing.configuration import device_files
    from tools.flashing.wheelhouse import build, gather, look_into

    wanted = target(to)
    files, fleet = {}, ""
    if device is not None:
        if config is None:
            raise ValueError(f"--config is missing: the file that has the [[device]] {device}")
        files = device_files(config, device, credentials=secrets)
        fleet = _fleet(config, device)
    extras = tuple({"infer", *extra, *(["train"] if with_torch else [])})
    steps = progress(f"bundle for {to}", 3, "steps")
    with tempfile.TemporaryDirectory(prefix="relief-bundle-") as scratch, steps as step:
        step(0, "the project's wheel")
        if wheel is not None:
            look_into(wheel)
        project = wheel or build(Path(scratch) / "project")
        step(1, "resolving and fetching wheels")
        wheels = gather(wanted, project, Path(scratch) / "wheels", extras=extras, lock=lock)
        step(2, "packing, and reading it back")
        return pack(wanted, wheels, out, fleet=fleet, device=device or "", config=files)


def _fleet(config: Path, device: str) -> str:
    from device_runtime.config import settings

    return settings(config, device).fleet
