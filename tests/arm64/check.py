"""What can be shown of flashing without a board, on an emulated arm64 Debian. The verdict is on the last line.

python -m tests.arm64.check [--only NAME ...] [--kills N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from broker_config.launcher import Broker
from device_runtime.slots import Slots
from tests.arm64 import boot, root, variants
from tools.flash import make

RELIEF = "/opt/relief/current/bin/relief"
CONFIG = "/etc/relief/device.toml"
PROBE = ("/opt/relief/current/venv/bin/python", "-I", "-m", "device_runtime.probe", CONFIG)


class World:
    """A scratch folder, a broker on loopback, bundles and roots, each made when first asked for."""

    def __init__(self, folder: Path, broker: Broker, kills: int) -> None:
        self.folder, self.broker, self.kills = folder, broker, kills
        self.config = folder / "fleet.toml"
        self.config.write_text(
            f'fleet = "emulated"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
            '[coordinator]\nfolder = "run"\nexpect = 1\nrounds = 1\nmargin = 120.0\n'
            '[[device]]\nid = "wrist"\npower = []\n[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.1]\n'
        )
        self._bundles: dict[str, Path] = {}

    def bundle(self, name: str = "plain", *, torch: bool = False, wheel: Path | None = None) -> Path:
        if name not in self._bundles:
            out = self.folder / "bundles" / name
            made = make("debian12-arm64", "wrist", self.config, out, with_torch=torch, wheel=wheel)
            self._bundles[name] = made.path
        return self._bundles[name]

    def relief(self, *arguments: str, patience: float = 900.0) -> tuple[int, str]:
        command = ["nice", "-n", "10", sys.executable, "-m", "tools.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
        return done.returncode, done.stdout + done.stderr


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def small_bundle(w: World) -> str:
    """Without torch a bundle is below 60 MB, and made twice it has the same bytes."""
    size = w.bundle().stat().st_size
    assert size < 60e6, f"{size / 1e6:.1f} MB"
    with tempfile.TemporaryDirectory() as scratch:
        again = make("debian12-arm64", "wrist", w.config, Path(scratch))
        assert again.path.read_bytes() == w.bundle().read_bytes(), "a second one has other bytes"
    return f"{size / 1e6:.1f} MB, the same bytes twice"


def quick_rootfs(w: World) -> str:
    """Without torch it is in a root folder in less than 10 s, and the runtime runs there."""
    place = root.fresh(w.folder / "small")
    began, spent = time.monotonic(), _spent()
    code, said = w.relief(
        "flash", "rootfs", str(place), "--device", "wrist", "-c", str(w.config), "--bundle", str(w.bundle())
    )
    seconds, spent = time.monotonic() - began, _spent() - spent
    assert code == 0, said
    code, told = root.inside(place, *PROBE)
    assert code == 0, told
    shutil.rmtree(place)
    # Of the processor's time, so that a busy machine is not taken for a slow installation.
    assert spent < 10, f"{spent:.1f} s of CPU, {seconds:.1f} s in all"
    return f"{seconds:.1f} s, {spent:.1f} s of CPU; {told.strip().splitlines()[-1]}"


def rootfs_with_torch(w: World) -> str:
    """With torch: units enabled, runtime and torch import, `relief device check` runs."""
    place = root.fresh(w.folder / "torch")
    bundle = w.bundle("torch", torch=True)
    began = time.monotonic()
    code, said = w.relief(
        "flash", "rootfs", str(place), "--device", "wrist", "-c", str(w.config), "--bundle", str(bundle)
    )
    seconds = time.monotonic() - began
    assert code == 0, said
    wants = place / "etc/systemd/system/multi-user.target.wants"
    for unit in ("relief-device.service", "relief-firstboot.service"):
        assert (wants / unit).is_symlink(), f"{unit} is not enabled"
    code, told = root.inside(place, "/opt/relief/firstboot")
    assert code == 0, told
    assert (place / "etc/hostname").read_text() == "wrist\n"
    assert socket.gethostname() != "wrist", "the machine around it was renamed"
    code, told = root.inside(place, *PROBE)
    assert code == 0 and json.loads(told.strip().splitlines()[-1])["torch"], told
    code, checks = root.inside(place, RELIEF, "device", "check", "--config", CONFIG)
    assert len(checks.splitlines()) >= 6 and "OK" in checks, checks
    print("\n".join(f"      {line}" for line in checks.splitlines()))
    return f"bundle {bundle.stat().st_size / 1e6:.0f} MB, installed in {seconds:.1f} s, device check: exit {code}"


def a_round(w: World) -> str:
    """The device in the chroot and a coordinator outside complete a round over Mosquitto."""
    place = w.folder / "torch"
    if not place.exists():
        rootfs_with_torch(w)
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "coordinator", "run", "--config", str(w.config)],
        stdout=subprocess.DEVNULL, stderr=(w.folder / "coordinator.log").open("wb"),
    )  # fmt: skip
    began, log = time.monotonic(), w.folder / "device.log"
    try:
        with root.Inside(place, "/opt/relief/launch", log=log):
            assert coordinator.wait(420) == 0, (w.folder / "coordinator.log").read_text()[-800:]
            confirmed = not (place / "opt/relief/trial").exists()
    except subprocess.TimeoutExpired:
        raise AssertionError(log.read_text()[-800:]) from None
    finally:
        coordinator.kill()
        coordinator.wait()
    lines = [json.loads(line) for line in (w.folder / "run/metrics.jsonl").read_text().splitlines()]
    done = [line for line in lines if line["kind"] == "round"]
    assert len(done) == 1 and done[0]["updates"] == 1, done
    assert confirmed, "the version was still on trial after it had met the broker"
    return f"{time.monotonic() - began:.0f} s, {done[0]['bytes_up']:,} bytes up, loss {done[0]['loss']:.3f}"


class Sshd:
    """An sshd inside a root, on loopback."""

    def __init__(self, w: World, place: Path) -> None:
        self.place, self.folder = place, w.folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        key = w.folder / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        home = place / "root/.ssh"
        home.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(key.with_suffix(".pub"), home / "authorized_keys")
        self.options = ("-o", f"Port={self.port}", "-o", f"IdentityFile={key}", "-o", "StrictHostKeyChecking=no",
                        "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")  # fmt: skip

    def __enter__(self) -> Sshd:
        serve = f"mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -p {self.port} -o ListenAddress=127.0.0.1"
        self.inside = root.Inside(self.place, "/bin/sh", "-c", serve, log=self.folder / "sshd.log")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as link:
                    if link.recv(4) == b"SSH-":
                        return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "sshd.log").read_text()[-500:])

    def __exit__(self, *_: object) -> None:
        self.inside.kill()

    def command(self, bundle: Path) -> list[str]:
        return ["flash", "ssh", "root@127.0.0.1", *self.options, "--bundle", str(bundle)]


def _runs(place: Path) -> str:
    """Version that starts from the link; AssertionError where none does."""
    code, told = root.inside(place, *PROBE)
    assert code == 0, told
    return str(json.loads(told.strip().splitlines()[-1])["runtime"])


def over_ssh(w: World) -> str:
    """Install, update, an update that cannot start, one whose check is broken: always a version that works."""
    place = root.fresh(w.folder / "board")
    torch = place / "usr/local/lib/python3.11/dist-packages/torch-2.5.0a0+872d972e41.nv24.8.dist-info"
    torch.mkdir(parents=True)
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.5.0a0+872d972e41.nv24.8\n")
    told = []
    with Sshd(w, place) as sshd:
        made = {
            "newer": variants.variant(w.folder, "0.1.1"),
            "broken": variants.variant(w.folder, "0.1.2", variants.CANNOT_START),
            "checks": variants.variant(w.folder, "0.1.3", variants.CHECK_IS_BROKEN),
        }
        steps = (
            ("install", w.bundle(), 0, "0.1.0", "0.1.0 installed"),
            ("update", w.bundle("newer", wheel=made["newer"]), 0, "0.1.1", "0.1.1 installed"),
            ("cannot start", w.bundle("broken", wheel=made["broken"]), 60, "0.1.1", "made to fail"),
            ("broken check", w.bundle("checks", wheel=made["checks"]), 1, "0.1.1", "was rolled back"),
        )
        for name, bundle, expected, version, words in steps:
            began = time.monotonic()
            code, said = w.relief(*sshd.command(bundle))
            assert code == expected and words in said, f"{name}: exit {code}\n{said}"
            Slots(place / "opt/relief").confirm()  # no agent runs here that could meet the broker
            assert _runs(place) == version, f"{name}: {_runs(place)} runs"
            told.append(f"{name} {time.monotonic() - began:.0f} s")
            print("\n".join(f"      {line}" for line in said.strip().splitlines()))
    assert torch.is_dir() and not list((place / "opt/relief/slots").glob("*/venv/lib/*/site-packages/torch"))
    return ", ".join(told) + "; the board's torch stayed"


def killed(w: World) -> str:
    """SIGKILL of everything on the board at random points of an update: always a version that works."""
    place = w.folder / "board"
    if not place.exists():
        place = root.fresh(place)
        with Sshd(w, place) as sshd:
            code, said = w.relief(*sshd.command(w.bundle()))
            assert code == 0, said
    newer = w.bundle("newer") if "newer" in w._bundles else w.bundle("newer", wheel=variants.variant(w.folder, "0.1.1"))
    began = time.monotonic()
    with Sshd(w, place) as sshd:
        w.relief(*sshd.command(newer))
    whole = time.monotonic() - began
    draw, seen = random.Random(8), []
    for n in range(w.kills):
        bundle = w.bundle() if n % 2 else newer
        Slots(place / "opt/relief").confirm()  # or the next update would be refused
        with Sshd(w, place) as sshd:
            update = subprocess.Popen([sys.executable, "-m", "tools.cli", *sshd.command(bundle)],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            at = draw.uniform(0.1, 1.0) * whole
            time.sleep(at)
            sshd.inside.kill()
            update.wait(120)
        slots = Slots(place / "opt/relief")
        seen.append(f"{at:.0f} s: {_runs(place)} in {slots.current}")
    return f"{w.kills} kills within {whole:.0f} s each: " + "; ".join(seen)


def booted(w: World) -> str:
    """The root boots with systemd, and our unit reports its birth to the broker."""
    place = w.folder / "small-boot"
    root.fresh(place)
    config = w.folder / "boot.toml"
    config.write_text(w.config.read_text().replace('"127.0.0.1"', f'"{boot.GATEWAY}"').replace('"wrist"', '"booted"'))
    made = make("debian12-arm64", "booted", config, w.folder / "bundles" / "boot")
    code, said = w.relief(
        "flash", "rootfs", str(place), "--device", "booted", "-c", str(config), "--bundle", str(made.path)
    )
    assert code == 0, said
    return boot.birth(place, w.folder, w.broker, "emulated", "booted")


CHECKS: dict[str, Callable[[World], str]] = {
    "bundle": small_bundle,
    "rootfs": quick_rootfs,
    "torch": rootfs_with_torch,
    "round": a_round,
    "ssh": over_ssh,
    "kill": killed,
    "boot": booted,
}


def main() -> int:
    """Run the checks in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--kills", type=int, default=10)
    asked = parser.parse_args()
    if reason := root.missing():
        print(f"arm64: skipped, {reason}")
        return 0
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    failed = []
    root.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=root.CACHE) as scratch, Broker() as broker:
        world = World(Path(scratch), broker, asked.kills)
        for name in asked.only:
            began = time.monotonic()
            try:
                told, mark = CHECKS[name](world), "ok  "
            except (AssertionError, subprocess.SubprocessError, OSError, RuntimeError, ValueError) as error:
                told, mark = str(error)[-1500:], "FAIL"
                failed.append(name)
            print(f"{mark}  {name:<8} {time.monotonic() - began:6.1f} s  {told}", flush=True)
    print(
        f"arm64: {len(asked.only) - len(failed)} of {len(asked.only)} checks good"
        + f", failed: {failed}" * bool(failed)
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
