"""Power and energy of the board, and where the figures come from."""

from device_runtime.power.condition import Battery, Limits, battery, temperatures
from device_runtime.power.energy import Allowance, Energy, Mark, Meter, attributed
from device_runtime.power.estimate import EstimateMonitor
from device_runtime.power.jtop_monitor import JtopMonitor
from device_runtime.power.monitor import Found, Monitor, PowerError, Sample
from device_runtime.power.rapl import RaplMonitor
from device_runtime.power.search import ORDER, find
from device_runtime.power.sysfs import SysfsMonitor

__all__ = [
    "ORDER",
    "Allowance",
    "Battery",
    "Energy",
    "EstimateMonitor",
    "Found",
    "JtopMonitor",
    "Limits",
    "Mark",
    "Meter",
    "Monitor",
    "PowerError",
    "RaplMonitor",
    "Sample",
    "SysfsMonitor",
    "attributed",
    "battery",
    "find",
    "temperatures",
]
