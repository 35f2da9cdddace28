"""An announced runtime: fetched with resume, checked, installed beside this one, switched to by ending.

The order `update_runtime` carries `url`, `sha256` and `size`, or `back` for the version before. The service starts us
again from the link.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_runtime.bundle import BadBundle, check_fit, file_digest, here, peek, unpack
from device_runtime.install import CONFIG, install
from device_runtime.orders import answered
from device_runtime.slots import Slots, own_slots
from protocol.messages import Order

log = logging.getLogger("relief.device")

TRIES = 5
PAUSE = 2.0  # seconds between two tries
PATIENCE = 30.0  # seconds without a byte
PIECE = 1 << 16


class Updater:
    """Carries out one order at a time in a thread of its own; `say` takes the result, `end` stops this process."""

    def __init__(self, folder: Path, say: Callable[[object], None], end: Callable[[str], None]) -> None:
        self._folder, self._say, self._end = folder / "updates", say, end
        self._thread: threading.Thread | None = None

    def obey(self, order: Order) -> None:
        """Begin an update; its report follows as an OrderDone, and a restart where it succeeded."""
        slots = own_slots()
        if slots is None:
            self._say(
                answered(order, {}, "this runtime was not installed from a bundle: update it as it was installed")
            )
        elif self._thread and self._thread.is_alive():
            self._say(answered(order, {}, "an update is being installed already"))
        else:
            self._thread = threading.Thread(target=self._run, args=(order, slots), name="update", daemon=True)
            self._thread.start()

    def _run(self, order: Order, slots: Slots) -> None:
        try:
            runtime = carry_out(order.args, slots, self._folder)
        except (BadBundle, OSError, ValueError) as error:
            self._say(answered(order, {}, str(error)))
            return
        except Exception as error:  # the thread must answer whatever happens
            log.exception("update failed")
            self._say(answered(order, {}, f"{type(error).__name__}: {error}"))
            return
        self._say(answered(order, {"runtime": runtime}))
        time.sleep(1.0)  # the report goes out first
        self._end(f"update to {runtime}")


def carry_out(args: dict[str, Any], slots: Slots, folder: Path, config: Path | None = None) -> str:
    """Fetch, check and install what an order names, then switch; the new runtime's version. BadBundle."""
    if args.get("back"):
        slots.roll_back(str(args.get("reason", "")) or "by an operator")
        running = slots.manifest(slots.current or "")
        return running.runtime if running else ""
    url, digest, size = str(args.get("url", "")), str(args.get("sha256", "")), int(args.get("size", 0))
    if not url.startswith(("http://", "https://")) or len(digest) != 64 or size <= 0:
        raise BadBundle("the order names no url, sha256 and size of a bundle")
    if config is None:
        config = Path(os.environ.get("RELIEF_CONFIG", str(CONFIG)))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != f"{digest}.part":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    archive = fetch(url, folder / f"{digest}.part", size, digest)
    try:
        check_fit(peek(archive), here(slots.base))
        manifest = unpack(archive, folder / "unpacked")
        running = slots.manifest(slots.current or "")
        if running is not None and running == manifest:
            raise BadBundle(f"{manifest.runtime} of this bundle runs already")
        slots.switch(install(folder / "unpacked", slots, config if config.is_file() else None, log.info))
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
    return manifest.runtime


def fetch(url: str, target: Path, size: int, digest: str) -> Path:
    """Download to `target`, going on where an earlier try stopped. BadBundle where it is not what was announced."""
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise BadBundle(f"the bundle takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: make room first")
    problem = ""
    for _ in range(TRIES):
        have = target.stat().st_size if target.exists() else 0
        if have < size:
            try:
                _append(url, target, have, size)
            except (OSError, urllib.error.URLError) as error:
                problem = str(error)
                time.sleep(PAUSE)
                continue
        have = target.stat().st_size
        if have == size and file_digest(target) == digest:
            return target
        if have >= size:
            target.unlink()
            raise BadBundle("the download does not have the sha256 that was announced")
        problem = f"it ended after {have:,} of {size:,} bytes"
    raise BadBundle(f"the bundle could not be fetched: {problem}")


def _append(url: str, target: Path, have: int, size: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as source:
        if have and source.status != 206:  # a server that cannot go on begins anew
            have = 0
        with target.open("r+b" if have else "wb") as out:
            out.seek(have)
            while (piece := source.read(PIECE)) and have < size:
                have += len(piece)
                out.write(piece[: len(piece) - max(0, have - size)])
