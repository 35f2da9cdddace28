"""Packs a bundle: the same inputs give the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import MANIFEST, BadBundle, Manifest, file_digest, unpack
from protocol.messages import PROTOCOL
from tools.flashing.licences import licence, table
from tools.flashing.targets import Target
from tools.flashing.wheelhouse import Wheelhouse

UNITS = Path(__file__).resolve().parents[2] / "device_runtime" / "units"
SCRIPTS = ("install.sh", "launch", "firstboot")


@dataclass(frozen=True)
class Bundle:
    """A packed bundle."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


def pack(
    target: Target,
    wheels: Wheelhouse,
    out: Path,
    *,
    fleet: str = "",
    device: str = "",
    config: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write the archive below `out` and read it back as its receiver will. BadBundle."""
    licences = [licence(wheel) for wheel in sorted(wheels.folder.glob("*.whl"))]
    contents: dict[str, bytes | Path] = {
        "install.sh": UNITS / "install.sh",
        "requirements.txt": wheels.requirements.encode(),
        "LICENCES.md": table(licences).encode(),
    }
    contents |= {f"units/{p.name}": p for p in sorted(UNITS.iterdir()) if p.is_file() and p.name != "install.sh"}
    contents |= {f"wheels/{p.name}": p for p in sorted(wheels.folder.glob("*.whl"))}
    contents |= {f"config/{name}": content for name, content in (config or {}).items()}
    manifest = Manifest(
        target=target.name,
        arch=target.arch,
        python=target.python,
        release=target.release,
        runtime=wheels.version,
        protocol=PROTOCOL,
        torch=wheels.torch,
        installed=wheels.installed,
        fleet=fleet,
        device=device,
        packages=licences,
        files={name: _seen(content) for name, content in contents.items()},
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"relief-{device or 'update'}-{target.name}{'-torch' * wheels.torch}-{wheels.version}.tar"
    _write(path, {MANIFEST: manifest.encode(), **contents})
    checked = out / f".{path.name}.check"
    try:
        unpack(path, checked)
    except BadBundle:
        path.unlink()
        raise
    finally:
        _remove(checked)
    return Bundle(path, manifest, file_digest(path))


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


def _seen(content: bytes | Path) -> tuple[str, int]:
    import hashlib

    if isinstance(content, Path):
        return file_digest(content), content.stat().st_size
    return hashlib.sha256(content).hexdigest(), len(content)


def _write(path: Path, contents: Mapping[str, bytes | Path]) -> None:
    """A tar with nothing of this machine in it: no times, no owners, one order."""
    aside = path.with_name(f".{path.name}.new")
    with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(contents, key=lambda name: (name != MANIFEST, name)):
            content = contents[name]
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if Path(name).name in SCRIPTS else 0o600 if name.startswith("config/") else 0o644
            if isinstance(content, Path):
                entry.size = content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    aside.chmod(0o600)
    aside.rename(path)
