"""Two places for a runtime and a link that says which one runs. Standard library only.

    BASE/slots/a, b       a version each, complete when its manifest.json is there
    BASE/current          link to the one that runs
    BASE/trial            "NEW OLD TRIES": NEW runs but has not yet shown that it works; the launcher counts its starts
    BASE/failed           why the last trial was ended

Every step is one rename on one file system, made durable before the next, so a power cut at any instant leaves a
link to a complete version. The launcher (units/launch) does the counting and the way back.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from device_runtime.bundle import MANIFEST, BadBundle, Manifest

log = logging.getLogger("relief.device")

RESTART = 75  # exit code of a runtime: start me again, from the link
NAMES = ("a", "b")
BASE = Path("/opt/relief")


@dataclass(frozen=True)
class Trial:
    """A version on probation; `old` is "-" where there was none before."""

    new: str
    old: str
    tries: int


class Slots:
    """The versions below `base`."""

    def __init__(self, base: Path = BASE) -> None:
        self.base = base

    def path(self, slot: str) -> Path:
        """Where a version lives."""
        return self.base / "slots" / slot

    @property
    def current(self) -> str | None:
        """The slot that the link names, None before the first installation."""
        try:
            return (self.base / "current").readlink().name
        except OSError:
            return None

    @property
    def spare(self) -> str:
        """The slot that nothing runs from."""
        return NAMES[1] if self.current == NAMES[0] else NAMES[0]

    @property
    def trial(self) -> Trial | None:
        """The trial that is on, if any."""
        try:
            new, old, tries = (self.base / "trial").read_text().split()
            return Trial(new, old, int(tries))
        except (OSError, ValueError):
            return None

    @property
    def failed(self) -> str:
        """Why the last trial was ended; empty if it was not."""
        try:
            return (self.base / "failed").read_text().strip()
        except OSError:
            return ""

    def manifest(self, slot: str) -> Manifest | None:
        """What is installed in a slot, None where nothing complete is."""
        try:
            return Manifest.decode((self.path(slot) / MANIFEST).read_bytes())
        except (OSError, BadBundle):
            return None

    def clear(self, slot: str) -> Path:
        """An empty folder for a new version; refused for the slot that runs, or may have to run again."""
        trial = self.trial
        if slot == self.current:
            raise ValueError(f"slot {slot} is running")
        if trial and slot == trial.old:
            raise BadBundle(f"slot {trial.new} is still on trial: wait until it is confirmed, or roll it back")
        path = self.path(slot)
        (path / MANIFEST).unlink(missing_ok=True)  # first: half a folder must not pass for a version
        sync(path)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def complete(self, slot: str, manifest: bytes) -> None:
        """Everything is there: make it durable, then say so."""
        os.sync()
        replace(self.path(slot) / MANIFEST, manifest)

    def switch(self, slot: str) -> None:
        """Run `slot` from the next start on, on trial. BadBundle where it is not complete."""
        if self.manifest(slot) is None:
            raise BadBundle(f"slot {slot} holds no complete version")
        (self.base / "failed").unlink(missing_ok=True)
        replace(self.base / "trial", f"{slot} {self.current or '-'} 0\n".encode())
        self._point(slot)

    def confirm(self) -> bool:
        """The version on trial works: it stays. False where none was on trial."""
        if self.trial is None:
            return False
        (self.base / "trial").unlink(missing_ok=True)
        sync(self.base)
        return True

    def roll_back(self, reason: str) -> str:
        """Back to the version before, which needs no trial. Returns its slot; BadBundle where there is none."""
        trial = self.trial
        old = trial.old if trial and trial.new == self.current else self.spare
        if old not in NAMES or self.manifest(old) is None:
            raise BadBundle("there is no other version to go back to")
        replace(self.base / "failed", f"{reason}\n".encode())
        self._point(old)
        (self.base / "trial").unlink(missing_ok=True)
        sync(self.base)
        return old

    def _point(self, slot: str) -> None:
        aside = self.base / ".current"
        aside.unlink(missing_ok=True)
        aside.symlink_to(f"slots/{slot}")
        aside.rename(self.base / "current")
        sync(self.base)


def replace(path: Path, content: bytes) -> None:
    """Write a file whole and durably, or not at all."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make a folder's entries durable; nothing where it does not exist."""
    if not folder.is_dir():
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def own_slots() -> Slots | None:
    """The slots that this process runs from; None where it was installed in another way."""
    slots = Slots(Path(os.environ.get("RELIEF_BASE", "/opt/relief")))
    return slots if slots.current and _own_slot(slots) else None


def _own_slot(slots: Slots) -> str:
    """The slot whose code this process runs, whatever the link says by now; empty where it is none of them."""
    code = Path(__file__).resolve()
    return next((name for name in NAMES if code.is_relative_to(slots.path(name).resolve())), "")


def confirm() -> None:
    """We have met the broker: the version on trial, if we are it, stays.

    Before its own end the version that was switched from may meet the broker again, which says nothing of the new one.
    """
    slots = own_slots()
    if slots is None or slots.trial is None or slots.trial.new != _own_slot(slots):
        return
    try:
        if slots.confirm():
            log.info("this version is confirmed")
    except OSError as error:
        log.warning("this version could not be confirmed: %s", error)
