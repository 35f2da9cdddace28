"""The demo where no broker is to be had: the same parties as threads of this process, over the in-memory transport."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from coordinator.service import Coordinator
from device_runtime.config import settings
from device_runtime.runtime import Runtime
from device_runtime.senses import replayed
from device_runtime.worker import prepare
from protocol.memory import MemoryBroker, MemoryTransport
from tools.configuration import read
from tools.coordinator import build


class Threads:
    """In the place of `Processes`; without CPU quotas, since a thread cannot have one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = MemoryBroker()
        self._devices: dict[str, Runtime] = {}
        self._coordinators: dict[str, tuple[Coordinator, threading.Event]] = {}
        self._threads: dict[str, threading.Thread] = {}
        folder.mkdir(parents=True, exist_ok=True)
        prepare()

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def stop_all(self) -> None:
        """End everything."""
        self.stop(*list(self._threads))

    def device(self, id: str, file: Path) -> None:
        """Begin a device's life."""
        chosen = settings(file, id)
        sensing, _ = replayed(chosen.device, trains=True)
        runtime = self._devices[id] = Runtime(chosen, MemoryTransport(self.memory, id), sensing)
        self._begin(id, threading.Thread(target=runtime.run, name=id, daemon=True))

    def coordinator(self, name: str, file: Path) -> None:
        """Begin a coordinator's run."""
        made, stop = build(read(file), self.memory), threading.Event()
        self._coordinators[name] = made, stop
        self._begin(name, threading.Thread(target=made.run, args=(stop,), name=name, daemon=True))

    def _begin(self, name: str, thread: threading.Thread) -> None:
        self._threads[name] = thread
        thread.start()

    def stop(self, *names: str) -> None:
        """Ask these to end and wait for them."""
        for name in names:
            if name in self._devices:
                self._devices[name].stop()
            elif name in self._coordinators:
                made, stop = self._coordinators[name]
                stop.set()
                made.wake()
        for name in names:
            if name in self._threads:
                self._threads.pop(name).join(3)

    def fallen(self) -> str | None:
        """Whether a device ended by itself."""
        gone = [name for name in self._devices if name in self._threads and not self._threads[name].is_alive()]
        return f"{gone[0]} ended by itself" if gone else None

    def ended(self, name: str) -> bool:
        """Whether it ran to its end."""
        return name not in self._threads or not self._threads[name].is_alive()
