"""Which rails make up a board's total. Some rails lie inside others: adding all of them counts energy twice."""

from __future__ import annotations

from collections.abc import Collection

from device_runtime.power.monitor import PowerError

# The first entry whose rails are all there is the board's total. A rail at the input holds all others.
# AGX Orin: VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0, so it is left out.
TOTALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGX Thor", ("VIN",)),
    ("Orin NX, Orin Nano, Xavier NX or TX2", ("VDD_IN",)),
    ("Nano or TX1", ("POM_5V_IN",)),
    ("AGX Orin", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
    ("AGX Xavier", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
)
UNKNOWN = "unknown board"


def total_rails(names: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """(board, rails whose sum is its total). An unknown set is summed whole and called an unknown board."""
    for board, rails in TOTALS:
        if all(rail in names for rail in rails):
            return board, rails
    return UNKNOWN, tuple(sorted(names))


def total_watts(source: str, rails: dict[str, float], summed: tuple[str, ...]) -> float:
    """Sum of the rails in `summed`. PowerError if one is missing: a partial sum would look like a saving."""
    missing = [rail for rail in summed if rail not in rails]
    if missing or not summed:
        raise PowerError(source, f"no reading of rail {', '.join(missing) or '(none found)'} in this sample")
    return sum(rails[rail] for rail in summed)
