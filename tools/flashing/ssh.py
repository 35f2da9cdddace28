"""Onto a running board over ssh: look, transfer, install beside, switch, check, and go back where it does not work."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from device_runtime.bundle import BadBundle, Host, Manifest, check_fit

LOOK = r"""
. /etc/os-release 2>/dev/null; echo "release=${ID:-} ${VERSION_ID:-}"
echo "arch=$(uname -m)"
echo "python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
p=/opt; [ -d "$p" ] || p=/; echo "free=$(df -Pk "$p" | awk 'NR==2 {print $4}')"
echo "clock=$(date +%s)"
echo "uid=$(id -u)"
echo "sudo=$(sudo -n true 2>/dev/null && echo yes)"
echo "torch=$(python3 -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null)"
echo "jtop=$(systemctl is-active jtop 2>/dev/null)"
echo "systemd=$([ -d /run/systemd/system ] && echo yes)"
echo "running=$(readlink /opt/relief/current 2>/dev/null)"
"""
CHECK = "/opt/relief/current/bin/relief device check --config /etc/relief/device.toml"
AGO = 300.0  # seconds that a board's clock may be off before certificates fail
PIECE = 1 << 18
SCRATCH = "/var/tmp"  # on the board: everybody may write there, so a folder's name must not be known before it is made
LEFT = 24 * 60  # minutes after which a folder there belongs to no transfer that may still run

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Board:
    """What a look at the board has shown."""

    host: Host
    skew: float
    root: bool
    sudo: bool
    torch: str
    jtop: str
    systemd: bool
    running: str

    def findings(self) -> list[str]:
        """One line each."""
        lines = [
            f"{self.host.arch}, {self.host.release}, Python {self.host.python}, {self.host.free / 1e9:.1f} GB free"
        ]
        lines.append(
            f"clock {self.skew:+.0f} s against ours" + ("" if abs(self.skew) < AGO else ": set it, TLS will fail")
        )
        lines.append(f"torch {self.torch}: stays as it is" if self.torch else "torch: none")
        lines.append(f"jtop service: {self.jtop or 'none'}")
        lines.append(f"runs {self.running}" if self.running else "no runtime of ours yet")
        return lines


class Link:
    """One board by ssh. `options` go to ssh as they are; its own configuration file holds."""

    def __init__(self, host: str, options: tuple[str, ...] = ()) -> None:
        if host.startswith("-"):
            raise ValueError(f"{host!r} is no host")
        self.host = host
        self._command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *options, host]

    def run(self, script: str, stdin: IO[bytes] | None = None, *, patience: float = 1800.0) -> tuple[int, str, str]:
        """Exit code, output and errors of a shell script there. BadBundle where there is no connection."""
        try:
            done = subprocess.run(
                [*self._command, f"sh -c {shlex.quote(script)}"],
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            raise BadBundle(f"{self.host}: no answer within {patience:g} s") from None
        if done.returncode == 255:
            told = (done.stderr.strip().splitlines() or ["connection lost"])[-1]
            raise BadBundle(f"{self.host}: {told}")
        return done.returncode, done.stdout, done.stderr

    def send(self, archive: Path, there: str, progress: Progress) -> None:
        """Copy a file, telling how far it got. BadBundle."""
        size = archive.stat().st_size
        command = [*self._command, f"umask 077 && cat > {shlex.quote(there)}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stdin is not None and process.stderr is not None
        sent = 0
        try:
            with archive.open("rb") as file:
                while piece := file.read(PIECE):
                    process.stdin.write(piece)
                    sent += len(piece)
                    progress(sent, size)
            process.stdin.close()
        except BrokenPipeError:
            pass
        errors = process.stderr.read().decode(errors="replace").strip()
        process.stderr.close()
        if process.wait():
            raise BadBundle(f"{self.host}: the transfer ended after {sent / 1e6:.1f} of {size / 1e6:.1f} MB: {errors}")


def look(link: Link) -> Board:
    """What the board is. BadBundle where it does not tell."""
    code, out, errors = link.run(LOOK, patience=60)
    said = dict(line.partition("=")[::2] for line in out.splitlines() if "=" in line)
    if code or "arch" not in said:
        raise BadBundle(f"{link.host}: cannot be looked at: {errors.strip() or f'exit code {code}'}")
    host = Host(said["arch"], said["python"] or "none", int(said["free"] or 0) * 1024, said["release"].strip())
    return Board(
        host=host,
        skew=float(said["clock"]) - time.time(),
        root=said["uid"] == "0",
        sudo=said["sudo"] == "yes",
        torch=said["torch"],
        jtop=said["jtop"],
        systemd=said["systemd"] == "yes",
        running=said["running"],
    )


def install(
    link: Link, board: Board, archive: Path, manifest: Manifest, digest: str, say: Say, progress: Progress
) -> bool:
    """Transfer, install beside what runs, switch and check. Whether the new version stays. BadBundle."""
    check_fit(manifest, board.host)
    if not (board.root or board.sudo):
        raise BadBundle(f"{link.host}: installing needs root there: allow sudo without a password, or log in as root")
    root = "" if board.root else "sudo -n "
    before = link.run(root + CHECK)[0] if board.running else 2
    folder = _folder(link, root)
    try:
        link.send(archive, f"{folder}/bundle.tar", progress)
        # Its names were looked at here already; the digest says that it is the same archive.
        unpack = (
            f"cd {folder} && echo '{digest}  bundle.tar' | sha256sum -c --quiet && tar -xf bundle.tar && rm bundle.tar"
        )
        code, _, errors = link.run(unpack)
        if code:
            raise BadBundle(f"{link.host}: the archive did not arrive whole: {errors.strip()}")
        code, out, errors = link.run(f"{root}{folder}/install.sh")
        for line in out.strip().splitlines():
            say(line)
        if code:
            raise BadBundle(f"{link.host}: {(errors.strip().splitlines() or [f'exit code {code}'])[-1]}")
    finally:
        link.run(f"{root}rm -rf {folder}")
    return _check(link, root, before, board, say)


def _folder(link: Link, root: str) -> str:
    """A new folder there that nobody else can have made or may enter. BadBundle.

    Removes what an interrupted install left: closed folders of the same user, which nobody else can put there.
    """
    left = f"-type d -name 'relief-????????' -user \"$(id -u)\" -perm 700 -mmin +{LEFT}"
    swept = f"{root}find {SCRATCH} -maxdepth 1 {left} -exec rm -rf {{}} + >/dev/null 2>&1"
    code, out, errors = link.run(f"{swept}; mktemp -d {SCRATCH}/relief-XXXXXXXX")
    folder = (out.split() or [""])[-1]  # a login shell may have said something before
    if code:
        told = errors.strip() or f"exit code {code}"
        raise BadBundle(f"{link.host}: no folder can be made in {SCRATCH} there: {told}")
    if not re.fullmatch(rf"{re.escape(SCRATCH)}/relief-[A-Za-z0-9]{{8}}", folder):
        raise BadBundle(f"{link.host}: mktemp there names {folder!r}, which is no folder of ours in {SCRATCH}")
    return folder


def _check(link: Link, root: str, before: int, board: Board, say: Say) -> bool:
    """The new agent's own check; one that is broken where the old one was not has to go."""
    code, out, errors = link.run(root + CHECK)
    for line in (out or errors).strip().splitlines():
        say(f"  {line}")
    if code < 2 or before >= 2:
        return True
    wheel = "/opt/relief/current/venv/bin/python -I -m device_runtime.install"
    told, restart = "", "; systemctl restart relief-device.service" if board.systemd else ""
    code, told, errors = link.run(f"{root}{wheel} rollback" + (f" && {root}{restart[2:]}" if restart else ""))
    say(f"the new version's check is broken where the old one's was not: {told.strip().splitlines()[:1] or errors}")
    return False
