"""A bundle: one tar that holds all a device installs. Opened as if a stranger had made it. Standard library only.

    manifest.json      what it is for, and the sha256 of every other file; sealed by its own sha256
    install.sh         unpacked, run as root: installs without a network
    wheels/            the runtime, what it needs, and pip to install them with
    requirements.txt   what to install, pinned
    config/            device.toml and certificates (not in a bundle for updates)
    units/             systemd units, the launcher, the first boot's script

This runs on a board before anything is installed, straight out of the runtime's wheel.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST = 4 * 1024**3  # bytes that a bundle may unpack to
SPARE = 1.1  # of the space that a version needs
PIECE = 1 << 20


class BadBundle(Exception):
    """A bundle that is not installed: which file, and what is wrong with it. Nothing was changed."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    python     the interpreter's version it was resolved for, "3.10"
    release    "ubuntu 22.04": ID and VERSION_ID of the target's os-release
    installed  bytes that the packages take once installed
    files      path -> (sha256, size)
    """

    target: str
    arch: str
    python: str
    release: str
    runtime: str
    protocol: int
    torch: bool
    installed: int
    fleet: str = ""
    device: str = ""
    packages: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """JSON with its seal."""
        plain = {"format": FORMAT, **asdict(self)}
        return json.dumps({**plain, "seal": _seal(plain)}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Read what `encode` wrote. BadBundle if a byte of it has changed."""
        try:
            plain = json.loads(raw)
            seal = plain.pop("seal")
            if plain.get("format") != FORMAT:
                raise BadBundle(
                    f"{MANIFEST}: format {plain.get('format')}, this runtime reads {FORMAT}: update it first"
                )
            if seal != _seal(plain):
                raise BadBundle(f"{MANIFEST}: does not have the sha256 that it names: it was changed or cut off")
            files = {str(path): (str(digest), int(size)) for path, (digest, size) in plain["files"].items()}
            return cls(**{**{k: v for k, v in plain.items() if k in cls.__dataclass_fields__}, "files": files})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadBundle(f"{MANIFEST}: cannot be read ({type(error).__name__}: {error})") from None


def _seal(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Host:
    """What a bundle must fit: the board, or a root folder that will be one."""

    arch: str
    python: str
    free: int
    release: str = ""


def here(base: Path) -> Host:
    """This machine, with the space there is below `base`."""
    probe = base
    while not probe.exists():
        probe = probe.parent
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return Host(platform.machine(), version, shutil.disk_usage(probe).free, release(Path("/")))


def release(root: Path) -> str:
    """ID and VERSION_ID of a root folder's os-release, empty where there is none."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        file = root / name
        if file.is_file():
            pairs = (line.partition("=") for line in file.read_text().splitlines())
            said = {key: value.strip('"') for key, _, value in pairs}
            return f"{said.get('ID', '')} {said.get('VERSION_ID', '')}".strip()
    return ""


def check_fit(manifest: Manifest, host: Host) -> None:
    """BadBundle where the bundle is not for this host, or does not fit on its disk."""
    if manifest.arch != host.arch:
        raise BadBundle(f"this bundle is for {manifest.arch}, the board is {host.arch}: make one with --target for it")
    if manifest.python != host.python:
        raise BadBundle(
            f"this bundle is for Python {manifest.python}, the board has {host.python}: make one with --target for it"
        )
    needed = int(manifest.installed * SPARE)
    if host.free < needed:
        raise BadBundle(
            f"the board has {host.free / 1e6:,.0f} MB free and a version takes {needed / 1e6:,.0f} MB: make room first"
        )


def verify(folder: Path) -> Manifest:
    """The manifest of an unpacked bundle, every file checked. BadBundle naming the first that is wrong."""
    try:
        manifest = Manifest.decode((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BadBundle(f"{folder}: no {MANIFEST} ({error.strerror}): this is no bundle") from None
    for path, (digest, size) in sorted(manifest.files.items()):
        check_path(path)
        file = folder / path
        if file.is_symlink() or not file.is_file():
            raise BadBundle(f"{path}: missing from the bundle")
        if file.stat().st_size != size or file_digest(file) != digest:
            raise BadBundle(f"{path}: does not have the sha256 in {MANIFEST}: it was changed or cut off")
    for found in folder.rglob("*"):
        name = found.relative_to(folder).as_posix()
        if not found.is_dir() and name != MANIFEST and name not in manifest.files:
            raise BadBundle(f"{name}: not named in {MANIFEST}")
    check_wheels(folder, manifest)
    return manifest


def check_wheels(folder: Path, manifest: Manifest) -> None:
    """Every package that is pinned has its wheel, and every wheel runs on the target."""
    wheels = {wheel_name(p.name): p.name for p in (folder / "wheels").glob("*.whl")}
    for name, version in pins(folder):
        if (name, version) not in wheels:
            raise BadBundle(f"wheels/: {name} {version} is pinned in requirements.txt and has no wheel")
    for name in wheels.values():
        tags = name.removesuffix(".whl").rsplit("-", 1)[1]
        if tags != "any" and manifest.arch not in tags:
            raise BadBundle(f"wheels/{name}: is not for {manifest.arch}")


def pins(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and versions of requirements.txt."""
    for line in (folder / "requirements.txt").read_text().splitlines():
        if line and line[0].isalnum():
            name, _, rest = line.partition("==")
            yield plain_name(name.split("[")[0]), rest.split()[0]


def wheel_name(file: str) -> tuple[str, str]:
    """Package and version of a wheel's file name."""
    name, version = file.split("-")[:2]
    return plain_name(name), version


def plain_name(name: str) -> str:
    """As indexes compare names (PEP 503)."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def check_path(name: str) -> None:
    """BadBundle for a path that leads out of the bundle."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise BadBundle(f"{name!r}: leads out of the bundle")


def unpack(archive: Path, folder: Path, *, digest: str = "") -> Manifest:
    """Unpack a bundle into the new `folder` and verify it; leaves no folder behind where it is refused. BadBundle."""
    if digest and file_digest(archive) != digest:
        raise BadBundle(f"{archive.name}: does not have the sha256 that was announced")
    try:
        members = _members(archive)
        total = sum(member.size for member in members)
        free = shutil.disk_usage(folder.parent).free
        if total > free:
            raise BadBundle(f"unpacking takes {total / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: make room first")
        folder.mkdir(mode=0o700)
        _extract(archive, members, folder)
        return verify(folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (tarfile.TarError, EOFError, OSError)):
            raise BadBundle(f"{archive.name}: cannot be unpacked ({error})") from None
        raise


def peek(archive: Path) -> Manifest:
    """The manifest of a packed bundle; its files are not checked. BadBundle."""
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(MANIFEST)
            if file is None:
                raise KeyError
            return Manifest.decode(file.read(64 * PIECE))
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise BadBundle(f"{archive}: no bundle ({error or MANIFEST})") from None


def _members(archive: Path) -> list[tarfile.TarInfo]:
    """Plain files with tame names, each once."""
    seen: set[str] = set()
    members = []
    total = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            check_path(member.name)
            if not (member.isreg() or member.isdir()):
                raise BadBundle(f"{member.name}: is a link or a device; a bundle holds plain files")
            total += member.size
            if total > LARGEST:
                raise BadBundle(f"{member.name}: the bundle unpacks to more than {LARGEST / 1e9:.0f} GB")
            if member.name in seen:
                raise BadBundle(f"{member.name}: is in the bundle twice")
            seen.add(member.name)
            members.append(member)
    if MANIFEST not in seen:
        raise BadBundle(f"{archive.name}: no {MANIFEST}: this is no bundle")
    return members


def _extract(archive: Path, members: list[tarfile.TarInfo], folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in members:
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # it is a regular file
            with target.open("xb") as out:
                shutil.copyfileobj(source, out, PIECE)
            target.chmod(stat.S_IRUSR | stat.S_IWUSR | (stat.S_IXUSR if member.mode & 0o100 else 0))
