"""The last resort: a guess at power from the board's name and its load. Never to be shown as measured."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from device_runtime.power.condition import SYS, Surroundings
from device_runtime.power.monitor import ESTIMATE, PowerError, Sample, now

PROC = Path("/proc")


@dataclass(frozen=True)
class Board:
    """Watts at rest and fully busy; `cpu_share` of the difference is the processor's, the rest the GPU's."""

    name: str
    pattern: str  # of the device tree's model
    idle: float
    busy: float
    cpu_share: float


# Busy: the budget of the module's largest power mode, or what owners measured (AGX Orin 40 + 15 W of GPU and CPU under
# stress, Orin NX 27.6 W). Idle: as owners report it. Carrier boards and loads change both by tens of percent.
BOARDS: tuple[Board, ...] = (
    Board("AGX Thor", r"thor", 30.0, 130.0, 0.3),
    Board("AGX Orin", r"agx orin", 9.0, 60.0, 0.27),
    Board("Orin NX", r"orin nx", 4.6, 27.6, 0.35),
    Board("Orin Nano", r"orin nano", 4.0, 15.0, 0.45),
    Board("AGX Xavier", r"agx xavier|jetson-agx", 7.0, 30.0, 0.4),
    Board("Xavier NX", r"xavier nx", 4.0, 20.0, 0.4),
    Board("TX2", r"tx2", 3.0, 15.0, 0.4),
    Board("Nano", r"jetson nano|nano developer", 1.5, 10.0, 0.4),
    Board("Raspberry Pi", r"raspberry pi", 2.5, 6.5, 1.0),
)
# A machine that says nothing about itself: 5 W a busy core, as laptops and small servers draw.
GENERIC = Board("generic", "", 10.0, 10.0 + 5.0 * (os.cpu_count() or 1), 1.0)


class EstimateMonitor:
    """Idle watts plus the share of busy watts that the load suggests, at most what the power mode's name says."""

    source = ESTIMATE

    def __init__(self, root: Path = SYS, proc: Path = PROC, board: Board | None = None) -> None:
        self._root, self._proc, self._board = root, proc, board
        self._surroundings = Surroundings(root)
        self._last: tuple[int, int] | None = None
        self._gpu_load: Path | None = None
        self._load = 0.0

    def open(self) -> None:
        """Recognise the board. PowerError where even the load cannot be read."""
        if self._board is None:
            self._board = recognise(self._proc)
        loads = [*self._root.glob("devices/gpu.*/load"), *self._root.glob("class/devfreq/*gpu/device/load")]
        self._gpu_load = loads[0] if loads else None
        self._last = self._jiffies()

    def read(self) -> Sample:
        """Guessed watts. `rails` is empty: there are none."""
        board = self._board or GENERIC
        t, before, after = now(), self._last, self._jiffies()
        if before is not None and after[1] > before[1]:
            self._load = (after[0] - before[0]) / (after[1] - before[1])
            self._last = after
        zones, mode = self._surroundings.read()
        load = board.cpu_share * self._load + (1 - board.cpu_share) * self._gpu()
        watts = board.idle + (board.busy - board.idle) * load
        cap = re.search(r"(\d+)W", mode)
        if cap:
            watts = min(watts, float(cap.group(1)))
        return Sample(t, watts, self.source, {}, (), zones, mode)

    def close(self) -> None:
        self._last = None

    def _jiffies(self) -> tuple[int, int]:
        """(busy, all) of the processors together since boot."""
        try:
            with (self._proc / "stat").open() as file:
                ticks = [int(value) for value in file.readline().split()[1:9]]
        except (OSError, ValueError) as error:
            raise PowerError(self.source, f"no load in {self._proc / 'stat'}: {error}") from None
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def _gpu(self) -> float:
        try:
            return min(1.0, int(self._gpu_load.read_text()) / 1000) if self._gpu_load else 0.0
        except (OSError, ValueError):
            return 0.0


def recognise(proc: Path = PROC) -> Board:
    """The board by its device tree's model, else the generic machine."""
    try:
        model = (proc / "device-tree/model").read_text().rstrip("\0").lower()
    except OSError:
        return GENERIC
    return next((board for board in BOARDS if re.search(board.pattern, model)), GENERIC)
