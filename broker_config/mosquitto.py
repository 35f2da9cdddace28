"""Finds Mosquitto, or fetches it without root where the system has apt.

The packages are unpacked into the user's cache; nothing is installed and nothing outside the cache is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # seldom on an ordinary user's PATH
PATIENCE = 120.0  # seconds for one apt command
STEPS = 3  # of a fetch: the package, unpacked, its libraries


@dataclass(frozen=True)
class Mosquitto:
    """A broker that runs here: the program and what its environment needs."""

    program: Path
    environment: dict[str, str] = field(default_factory=dict)

    def version(self) -> tuple[int, ...]:
        """(2, 0, 11); empty if it does not say."""
        told = subprocess.run(
            [self.program, "-h"], env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        words = told.stdout.split()
        number = words[words.index("version") + 1] if "version" in words[:3] else ""
        return tuple(int(part) for part in number.split(".") if part.isdigit())


def find() -> Mosquitto | None:
    """Mosquitto on PATH, in the system's folders, or fetched before."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(FOLDERS))
    return Mosquitto(Path(program)) if program else _unpacked(cache())


def find_or_fetch(progress: Callable[[int], object] = lambda done: None) -> tuple[Mosquitto | None, str]:
    """Mosquitto, and in words where it is from or why there is none. `progress` hears of each of STEPS of a fetch."""
    found = find()
    if found is not None:
        return found, f"Mosquitto at {found.program}"
    try:
        fetched = fetch(cache(), progress)
    except FetchFailed as error:
        return None, f"no Mosquitto here and none could be fetched: {error}"
    return fetched, f"Mosquitto fetched into {fetched.program.parents[2]}"


def cache() -> Path:
    """Where fetched programs live."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "relief" / "mosquitto"


class FetchFailed(Exception):
    """Mosquitto could not be fetched; the text says at which step and why."""


def fetch(folder: Path, progress: Callable[[int], object] = lambda done: None) -> Mosquitto:
    """Download Debian's or Ubuntu's package and the libraries missing here, unpack them below `folder`."""
    for tool in ("apt-get", "apt-cache", "dpkg", "ldd"):
        if shutil.which(tool) is None:
            raise FetchFailed(f"{tool} is missing (this works on Debian and Ubuntu): install Mosquitto by hand")
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    options: list[str] = []
    try:
        _download(["mosquitto"], packages, options)
    except FetchFailed:
        options = _own_lists(folder)
        _download(["mosquitto"], packages, options)
    progress(1)
    root = folder / "root"
    _unpack(packages, root)
    progress(2)
    wanted = ["mosquitto"]
    for _ in range(4):  # a library's libraries, and theirs
        if not _missing_libraries(root):
            break
        wanted = [name for parent in wanted for name in _depends(parent, options)]
        _download([name for name in wanted if not _installed(name)], packages, options)
        _unpack(packages, root)
    progress(STEPS)
    shutil.rmtree(packages)
    found = _unpacked(folder)
    if found is None or not found.version():
        raise FetchFailed("the package was unpacked but does not start: " + ", ".join(_missing_libraries(root)))
    return found


def _unpacked(folder: Path) -> Mosquitto | None:
    root = folder / "root"
    program = root / "usr" / "sbin" / "mosquitto"
    return Mosquitto(program, {"LD_LIBRARY_PATH": _library_path(root)}) if program.is_file() else None


def _library_path(root: Path) -> str:
    return os.pathsep.join(sorted({str(library.parent) for library in root.rglob("*.so*")}))


def _missing_libraries(root: Path) -> list[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": _library_path(root), "LC_ALL": "C"}
    told = subprocess.run(
        ["ldd", root / "usr/sbin/mosquitto"], env=environment, capture_output=True, text=True, check=False
    )
    return [line.split()[0] for line in told.stdout.splitlines() if "not found" in line]


def _depends(package: str, options: Sequence[str]) -> list[str]:
    told = _run(["apt-cache", *options, "depends", "--important", package])
    lines = (line.strip() for line in told.splitlines())
    return [line.split(": ", 1)[1] for line in lines if line.startswith("Depends: lib")]


def _installed(package: str) -> bool:
    told = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False)
    return "install ok installed" in told.stdout


def _download(packages: Sequence[str], into: Path, options: Sequence[str]) -> None:
    if packages:
        _run(["apt-get", *options, "download", *packages], cwd=into)


def _own_lists(folder: Path) -> list[str]:
    """Package lists of our own, where the system's are empty and only root may fill them."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={folder / 'apt'}", "-o", "Debug::NoLocking=1"]
    (folder / "apt").mkdir(exist_ok=True)
    _run(["apt-get", *options, "update"])
    return options


def _unpack(packages: Path, root: Path) -> None:
    for package in packages.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(root)])


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    try:
        told = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise FetchFailed(f"`{' '.join(command[:2])}` took more than {PATIENCE:g} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchFailed(f"`{' '.join(command)}`: {last}") from None
    return told.stdout
