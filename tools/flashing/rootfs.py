"""Into an unpacked root folder (Linux_for_Tegra/rootfs, or a Debian root) without running anything that is in it."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import MANIFEST, BadBundle, Host, Manifest, check_fit, plain_name, release
from device_runtime.install import requirements, starter, torch_in
from device_runtime.slots import Slots, replace
from tools.flashing.targets import TARGETS, Target
from tools.flashing.wheelhouse import run

MACHINES = {183: "aarch64", 62: "x86_64", 40: "armv7l"}  # ELF e_machine
ELF = struct.Struct("<4sB13xH")  # magic, class, machine
BASE, ETC, UNITS = "opt/relief", "etc/relief", "etc/systemd/system"
SERVICES = ("relief-firstboot.service", "relief-device.service")

# What writes the partitions is NVIDIA's; these are its own words for the boards we know.
_NVME = (
    "sudo ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 "
    "-c tools/kernel_flash/flash_l4t_t234_nvme.xml "
    '-p "-c bootloader/generic/cfg/flash_t234_qspi.xml" --showlogs --network usb0 {board} internal'
)
BOARDS = {
    "jetson-agx-orin-devkit": "sudo ./flash.sh jetson-agx-orin-devkit internal",
    "jetson-orin-nano-devkit": _NVME.format(board="jetson-orin-nano-devkit"),
    "jetson-orin-nano-devkit-super": _NVME.format(board="jetson-orin-nano-devkit-super"),
}


@dataclass(frozen=True)
class Root:
    """A root folder and what it is."""

    path: Path
    host: Host

    @property
    def tegra(self) -> bool:
        """Whether NVIDIA's BSP has been applied to it."""
        return (self.path / "etc/nv_tegra_release").is_file()

    @property
    def target(self) -> Target:
        """The target it is. BadBundle where it is none."""
        for one in TARGETS.values():
            if (one.arch, one.python, one.release) == (self.host.arch, self.host.python, self.host.release):
                return one
        known = "; ".join(f"{t.release} {t.arch} Python {t.python}" for t in TARGETS.values())
        h = self.host
        raise BadBundle(
            f"{self.path} is {h.release or 'unknown'} {h.arch} Python {h.python}; bundles are made for {known}"
        )


def inspect(path: Path) -> Root:
    """Architecture, release and Python of a root folder, read from its files. BadBundle where it is none."""
    shell = _inside(path, "bin/sh")
    python = _inside(path, "usr/bin/python3")
    if shell is None:
        raise BadBundle(f"{path} has no /bin/sh: give an unpacked root folder, as Linux_for_Tegra/rootfs")
    if python is None:
        raise BadBundle(f"{path} has no /usr/bin/python3: apply the sample root file system with Python first")
    magic, _, machine = ELF.unpack(shell.read_bytes()[: ELF.size])
    if magic != b"\x7fELF":
        raise BadBundle(f"{shell} is no program")
    version = re.fullmatch(r"python(3\.\d+)", python.name)
    if version is None:
        raise BadBundle(f"{python}: its version is not in its name")
    arch = MACHINES.get(machine, f"machine {machine}")
    return Root(path, Host(arch, version[1], shutil.disk_usage(path).free, release(path)))


def _inside(root: Path, name: str) -> Path | None:
    """Where a path of the root folder leads, its links followed as if the folder were /."""
    at = Path("/")
    parts = list(Path(name).parts)
    for _ in range(64):
        if not parts:
            found = root / at.relative_to("/")
            return found if found.is_file() else None
        part = parts.pop(0)
        at = at.parent if part == ".." else at / part
        here = root / at.relative_to("/")
        if here.is_symlink():
            link = here.readlink()
            at = Path("/") if link.is_absolute() else at.parent
            parts = [p for p in link.parts if p != "/"] + parts
    return None


def install(root: Root, folder: Path, manifest: Manifest) -> str:
    """Install the unpacked, verified bundle in `folder`; one line on what was done. BadBundle, nothing changed."""
    check_fit(manifest, root.host)
    slots = Slots(root.path / BASE)
    if slots.manifest(slots.current or "") == manifest:
        return f"{manifest.runtime} was there already"
    _identity(root, folder)
    slots.base.mkdir(parents=True, exist_ok=True)
    slot = slots.spare
    torch = _packages(root, folder, slots.clear(slot), f"/{BASE}/slots/{slot}")
    slots.complete(slot, (folder / MANIFEST).read_bytes())
    slots.switch(slot)
    for script in ("launch", "firstboot"):
        replace(slots.base / script, (folder / "units" / script).read_bytes())
        (slots.base / script).chmod(0o755)
    _enable(root, folder)
    return f"{manifest.runtime} in slot {slot}" + (f"; torch {torch} of the root folder stays" if torch else "")


def _packages(root: Root, folder: Path, slot: Path, there: str) -> str:
    """An environment made of files alone, filled by this machine's pip for the other one; the root's own torch."""
    python, host = f"python{root.host.python}", root.host
    venv = slot / "venv"
    site = venv / "lib" / python / "site-packages"
    site.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(f"/usr/bin/{python}")
    (venv / "bin" / "python3").symlink_to("python")
    text = f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {host.python}\n"
    (venv / "pyvenv.cfg").write_text(f"{text}executable = /usr/bin/{python}\ncommand = made for {there}/venv\n")
    where = [root.path / f"usr/local/lib/{python}/dist-packages", root.path / "usr/lib/python3/dist-packages"]
    torch = torch_in([str(path) for path in where])
    wanted, constraints = requirements((folder / "requirements.txt").read_text(), torch)
    pins = [pin for pin in constraints.splitlines() if not (torch and plain_name(pin.split("==")[0]) == "torch")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--only-binary=:all:", "--python-version", host.python, "--implementation", "cp"]
    target = TARGETS[Manifest.decode((folder / MANIFEST).read_bytes()).target]
    for platform in target.platforms:
        command += ["--platform", platform]
    command += ["--find-links", str(folder / "wheels"), "--target", str(site)]
    run(
        [*command, "--root-user-action=ignore", wanted.split("[")[0] + "==" + wanted.split("==")[1], *pins],
        "installing",
    )
    shutil.rmtree(site / "bin", ignore_errors=True)  # commands of this machine's interpreter
    starter(slot)
    shutil.copy(folder / "requirements.txt", slot / "requirements.txt")
    return torch


def _identity(root: Root, folder: Path) -> None:
    """Configuration for a board that has none yet."""
    packed = folder / "config"
    for file in sorted(packed.rglob("*")) if packed.is_dir() else ():
        target = root.path / ETC / file.relative_to(packed)
        if file.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.parent.chmod(0o750)
            shutil.copy(file, target)
            target.chmod(0o640)


def _enable(root: Root, folder: Path) -> None:
    units = root.path / UNITS
    units.mkdir(parents=True, exist_ok=True)
    for service in SERVICES:
        replace(units / service, (folder / "units" / service).read_bytes())
        (units / service).chmod(0o644)
    if shutil.which("systemctl"):
        command = ["systemctl", f"--root={root.path}", "--quiet", "enable", *SERVICES]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        if done.returncode == 0:
            return
    wants = units / "multi-user.target.wants"  # what `systemctl enable` makes of our [Install] sections
    wants.mkdir(exist_ok=True)
    for service in SERVICES:
        link = wants / service
        link.unlink(missing_ok=True)
        link.symlink_to(f"/{UNITS}/{service}")


def command(root: Root, board: str | None) -> str:
    """What its owner runs next to write the partitions."""
    if not root.tegra:
        return "no Tegra release in it: write the folder to the board's card as its maker says"
    if board is None:
        return "next, in Linux_for_Tegra, with --board NAME:\n" + "\n".join(f"  {one}" for one in BOARDS.values())
    told = BOARDS.get(board, f"sudo ./flash.sh {board} internal")
    return f"next, in Linux_for_Tegra, with the board in recovery mode (this writes its partitions):\n  {told}"
