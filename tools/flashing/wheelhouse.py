"""Wheels for another machine: the project's own, built and looked into, and everything it needs there.

The resolver evaluates markers for the target, not for this machine; pip then fetches exactly what it found, by hash.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import BadBundle, plain_name, wheel_name
from tools.flashing.targets import Target

SOURCE = Path(__file__).resolve().parents[2]
ROOMS = ("models", "sensors", "protocol", "coordinator", "device_runtime", "broker_config", "tools")
MUST_HOLD = (
    "device_runtime/runtime.py",
    "device_runtime/install.py",
    "device_runtime/units/install.sh",
    "device_runtime/units/launch",
    "device_runtime/units/firstboot",
    "device_runtime/units/relief-device.service",
    "protocol/messages.py",
    "tools/cli.py",
)
NEVER = re.compile(r"(^|/)(tests?|data|runs|results|\.cache)/|\.(pem|key|csr|pyc|log|npz|onnx)$")
EPOCH = "315532800"  # 1980-01-01, the oldest date that a zip can say


@dataclass(frozen=True)
class Wheelhouse:
    """Wheels in a folder, and the text of requirements.txt that pins them."""

    folder: Path
    project: Path
    requirements: str
    torch: bool

    @property
    def version(self) -> str:
        """Of the project's wheel."""
        return wheel_name(self.project.name)[1]

    @property
    def installed(self) -> int:
        """Bytes of all wheels unpacked."""
        return sum(unpacked(wheel) for wheel in self.folder.glob("*.whl"))


def build(out: Path, source: Path = SOURCE) -> Path:
    """The project's wheel, made from a checkout, looked into. BadBundle where a file is missing or does not belong."""
    if not (source / "pyproject.toml").is_file():
        raise BadBundle(f"{source} is no checkout: give the project's wheel with --wheel")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="relief-wheel-") as scratch:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, str(source)]
        run(command, "building the wheel", SOURCE_DATE_EPOCH=EPOCH)
        built = next(Path(scratch).glob("relief_edge-*.whl"))
        look_into(built, source)
        return Path(shutil.move(built, out / built.name))


def look_into(wheel: Path, source: Path | None = None) -> None:
    """BadBundle where the project's wheel lacks something, or holds what belongs to nobody else."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    for name in sorted(held):
        room = name.split("/")[0]
        if NEVER.search(name) or not (room in ROOMS or room.endswith(".dist-info")):
            raise BadBundle(f"{wheel.name}: {name} does not belong into it")
    wanted = set(MUST_HOLD)
    if source is not None:
        wanted |= {p.relative_to(source).as_posix() for room in ROOMS for p in (source / room).rglob("*.py")}
    missing = sorted(wanted - held)
    if missing:
        raise BadBundle(
            f"{wheel.name}: {missing[0]} is missing from it" + f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        )


def gather(
    target: Target, project: Path, folder: Path, *, extras: tuple[str, ...], lock: Path | None = None
) -> Wheelhouse:
    """Fill `folder` with all that the target needs to run `project`.

    extras    of the project; "train" brings torch
    lock      an earlier bundle's requirements.txt instead of resolving again
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = f"relief-edge[{','.join(sorted(extras))}]" if extras else "relief-edge"
    with tempfile.TemporaryDirectory(prefix="relief-wheels-") as scratch:
        locked = Path(scratch) / "locked.txt"
        if lock is None:
            locked.write_text(_resolve(target, project, wanted, Path(scratch)))
        else:
            locked.write_text("".join(line for line in lock.read_text().splitlines(True) if not _is_ours(line)))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--python-version", target.python, "--implementation", "cp"]
        for platform in target.platforms:
            command += ["--platform", platform]
        run([*command, "--dest", str(folder), "--requirement", str(locked)], f"fetching wheels for {target.name}")
        pins = locked.read_text()
    shutil.copy(project, folder / project.name)
    text = f"# Resolved for {target.name}, Python {target.python}, {target.arch}.\n"
    text += f"{wanted}=={wheel_name(project.name)[1]}\n{pins}"
    return Wheelhouse(folder, folder / project.name, text, torch="train" in extras)


def _is_ours(line: str) -> bool:
    return line.startswith("#") or plain_name(re.split(r"[\[= ]", line)[0]) == "relief-edge"


def _resolve(target: Target, project: Path, wanted: str, scratch: Path) -> str:
    """Pins with hashes, as the target's own pip would find them."""
    asked = scratch / "asked.in"
    limits = scratch / "limits.txt"
    limits.write_text("\n".join(target.limits) + "\n")
    asked.write_text(f"{wanted} @ {project.resolve().as_uri()}\npip\n")
    command = [resolver(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
    command += ["--python-platform", target.resolver_platform, "--python-version", target.python]
    command += ["--only-binary", ":all:", "--constraint", str(limits), str(asked)]
    lines = run(command, f"resolving for {target.name}").splitlines(keepends=True)
    kept, ours = [], False
    for line in lines:
        if not line.startswith(" "):
            ours = line.startswith("relief-edge")
        if not ours:
            kept.append(line)
    return "".join(kept)


def resolver() -> str:
    """uv, of this environment or of the system. ImportError that says how to get it."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise ImportError("resolving for another machine needs uv: pip install 'relief-edge[flash]'")
    return found


def unpacked(wheel: Path) -> int:
    """Bytes of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def run(command: list[str], what: str, **environment: str) -> str:
    """Run a tool; BadBundle with its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("ERROR", "error", "×"))] or lines[-2:]
        raise BadBundle(f"{what} failed: {' '.join(told)[:600]}")
    return done.stdout
