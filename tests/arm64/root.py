"""A Debian arm64 root, made once and kept, and programs run inside copies of it by emulation."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "arm64"
PACKED = CACHE / "root.tar.zst"
RELEASE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,openssh-server,openssh-sftp-server,python3,python3-venv,iproute2,"
    "ca-certificates,sudo"
)
BOOTSTRAP = ("--arch=arm64", "--variant=minbase")
KERNEL = ("linux-image-cloud-arm64", "initramfs-tools", "zstd")
INITRD = {
    "etc/initramfs-tools/conf.d/qemu": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/qemu": "virtio_pci\nvirtio_mmio\nvirtio_blk\next4\n",
}
TOOLS = ("debootstrap", "qemu-aarch64-static", "zstd", "unshare", "ssh", "sshd")
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def missing(tools: Sequence[str] = TOOLS) -> str:
    """Why none of this can run here; empty where it can."""
    if os.geteuid() != 0:
        return "it needs root, for chroot and mounts"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [tool for tool in tools if shutil.which(tool, path=path) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def emulate() -> None:
    """Have the kernel start arm64 programs by qemu; the interpreter is kept open, so a chroot needs no copy of it."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        rule = Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_text().strip().splitlines()[-1]
        (BINFMT / "register").write_text(rule)


def packed() -> Path:
    """The root as an archive; made by debootstrap the first time (some minutes)."""
    emulate()
    if PACKED.exists():
        return PACKED
    CACHE.mkdir(parents=True, exist_ok=True)
    work = CACHE / "work"
    shutil.rmtree(work, ignore_errors=True)
    _quiet(["debootstrap", *BOOTSTRAP, f"--include={PACKAGES}", RELEASE, str(work), *_mirror()])
    # By itself it looks at thousands of modules with a program each, which takes most of an hour in emulation.
    for name, text in INITRD.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    _quiet(["chroot", str(work), "apt-get", "install", "-y", "--no-install-recommends", *KERNEL])
    _quiet(["chroot", str(work), "apt-get", "clean"])
    shutil.rmtree(work / "dev")
    (work / "dev").mkdir()
    aside = PACKED.with_suffix(".new")
    _quiet(["tar", "-C", str(work), "--zstd", "-cf", str(aside), "."])
    aside.rename(PACKED)
    shutil.rmtree(work)
    return PACKED


def _mirror() -> list[str]:
    """Where this machine's own apt gets the release from; none: debootstrap's default."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {RELEASE}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[:1]


def unconfigured(folder: Path) -> Path:
    """A root with Python whose packages are only unpacked: enough to install into and to start Python in. Nothing of
    it is run to make it, so it takes a tenth of the time."""
    emulate()
    _quiet(["debootstrap", "--foreign", *BOOTSTRAP, "--include=python3,python3-venv", RELEASE, str(folder), *_mirror()])
    for package in sorted((folder / "var/cache/apt/archives").glob("*.deb")):
        # debootstrap has made links of /bin and /lib; a package that brings them as folders must not undo that.
        unpack = f"dpkg-deb --fsys-tarfile {package} | tar -C {folder} --keep-directory-symlink -xf -"
        _quiet(["sh", "-c", unpack])
    subprocess.run(["umount", str(folder / "proc")], capture_output=True)  # debootstrap may leave it mounted
    for place in ("proc", "dev", "run"):
        (folder / place).mkdir(exist_ok=True)
    return folder


def fresh(folder: Path) -> Path:
    """A new copy of the root."""
    folder.mkdir(parents=True)
    _quiet(["tar", "-C", str(folder), "--zstd", "-xf", str(packed())])
    return folder


def _quiet(command: list[str]) -> None:
    done = subprocess.run(["nice", "-n", "10", *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout)[-600:]}")


class Inside:
    """A program in a root, in namespaces of its own: its mounts, host name and processes end with it."""

    def __init__(self, root: Path, *command: str, log: Path | None = None) -> None:
        self.root = root
        script = (
            f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && mount -t tmpfs tmpfs {root}/run && "
            f"exec chroot {root} {shlex.join(command)}"
        )
        wrapped = [
            "nice",
            "-n",
            "10",
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ]
        with (log or Path(os.devnull)).open("ab") as sink:
            self.process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if log is None else sink,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
            )

    def said(self, patience: float = 600.0) -> tuple[int, str]:
        """Exit code and output at its end."""
        out, _ = self.process.communicate(timeout=patience)
        return self.process.returncode, out or ""

    def kill(self) -> None:
        """SIGKILL of everything in it at once, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def inside(root: Path, *command: str, patience: float = 600.0) -> tuple[int, str]:
    """Run one program in a root: exit code and output."""
    return Inside(root, *command).said(patience)
