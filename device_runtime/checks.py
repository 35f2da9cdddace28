"""`relief device check`: one small function a check, each says what is and, where that is not good, what to do."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import queue
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from device_runtime import accelerator
from device_runtime.config import Settings
from device_runtime.local import ask
from device_runtime.power import PowerError, find
from device_runtime.sensors_config import SensorConfig, maker
from protocol.connection import connection
from protocol.errors import ProtocolError
from protocol.tls import decoded
from protocol.transport import Connected, Event, Lost, Stopped
from protocol.waiting import take
from sensors.clock import astray
from sensors.locate import find as find_recordings
from sensors.recording import DataError

PATIENCE = 6.0  # seconds for the broker, and for each sensor
SOON = 30 * 86400.0  # seconds: a certificate that ends sooner is worth a warning
RUNTIME = 60 << 20  # bytes of a device that does not train
TORCH = 200 << 20  # bytes more of one that does: 251 MB were measured in all, on x86 with torch 2.13's CPU build
NOT_SYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex


class Level(IntEnum):
    """How bad it is; the exit code of the command is the worst."""

    OK = 0
    WARN = 1
    FAIL = 2


@dataclass(frozen=True)
class Result:
    """One line: what was checked, how it is, and what to do about it."""

    check: str
    level: Level
    told: str
    todo: str = ""


Running = dict[str, Any] | None  # what the running device answered
Check = Callable[[Settings, Running], Iterator[Result]]


def examine(settings: Settings) -> Iterator[Result]:
    """All checks, one after the other. A running device is asked, never disturbed."""
    running = ask(settings.device.folder, {"ask": "status"})
    for check in CHECKS:
        yield from check(settings, running)


def agent(settings: Settings, running: Running) -> Iterator[Result]:
    """Whether the device runs."""
    if running is None:
        yield Result("agent", Level.OK, "not running: what it would use is looked at directly")
        return
    age = f"pid {running.get('pid')}, up {running.get('seconds', 0) / 3600:.1f} h"
    yield Result("agent", Level.OK, f"running as {running.get('device')} ({age})")


def clock(settings: Settings, running: Running) -> Iterator[Result]:
    """Labels and sensors of several machines are joined by time; certificates have dates."""
    if time.time() < 1.7e9:
        yield Result("clock", Level.FAIL, f"it is {time.ctime()} here, which cannot be", "set the clock: timedatectl")
        return
    synchronised = _synchronised()
    if synchronised is False:
        todo = "timedatectl set-ntp true, or install chrony"
        yield Result("clock", Level.WARN, "runs on its own: no time source corrects it", todo)
    else:
        told = "synchronised" if synchronised else "plausible; whether it is synchronised is not known here"
        yield Result("clock", Level.OK, told)


def _synchronised() -> bool | None:
    """Whether the kernel's clock is corrected by somebody (adjtimex); None where the system does not say."""
    try:
        state = (ctypes.c_int * 64)()  # struct timex, read only: `modes` is 0
        if ctypes.CDLL(None, use_errno=True).adjtimex(state) < 0:
            return None
    except (OSError, AttributeError):
        return None
    # modes, padding; then longs: offset, freq, maxerror, esterror; then the int status.
    long = ctypes.sizeof(ctypes.c_long) // ctypes.sizeof(ctypes.c_int)
    return not state[5 * long] & NOT_SYNCHRONISED


def disk(settings: Settings, running: Running) -> Iterator[Result]:
    """The outbox needs a place that can be written and has room."""
    folder = settings.device.folder
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK):
        todo = f"give this user the right to write there, or set device.state (now {settings.device.state})"
        yield Result("disk", Level.FAIL, f"{there} cannot be written", todo)
        return
    problem = (running or {}).get("outbox_problem", "")
    free = shutil.disk_usage(there).free
    told = f"{free >> 20:,} MiB free at {there}"
    if problem or free < 16 << 20:
        yield Result("disk", Level.FAIL, problem or told, "make room: updates would be lost with a crash")
    elif free < settings.device.outbox_bytes:
        todo = f"make room, or lower device.outbox_bytes ({settings.device.outbox_bytes >> 20:,} MiB)"
        yield Result("disk", Level.WARN, told + ", less than the outbox may take", todo)
    else:
        yield Result("disk", Level.OK, told)


def broker(settings: Settings, running: Running) -> Iterator[Result]:
    """The broker can be reached; a running device is asked instead of taking its place there."""
    where = settings.broker.where
    if running is not None:
        if running.get("connected"):
            told = f"the running device is connected to {where}"
            if running.get("coordinator"):
                yield Result("broker", Level.OK, told + " and sees its coordinator")
            else:
                yield Result("broker", Level.WARN, told + ", no coordinator is online", "start the coordinator")
        else:
            yield Result("broker", Level.FAIL, f"the running device is not connected: {running.get('trouble')}")
        return
    if settings.broker.transport == "memory":
        yield Result(
            "broker", Level.FAIL, "in memory: no other process can be met there", 'set broker.transport = "mqtt"'
        )
        return
    yield _reached(settings, where)


def _reached(settings: Settings, where: str) -> Result:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    begin = time.monotonic()
    link = connection(settings.broker, settings.device.id)
    try:
        link.open(events.put)
        event = take(events, PATIENCE)
    except queue.Empty:
        return Result(
            "broker", Level.FAIL, f"{where} did not answer within {PATIENCE:g} s", "is it the right host and port?"
        )
    except (ProtocolError, OSError) as error:
        return Result("broker", Level.FAIL, str(error))
    finally:
        link.close()
    if isinstance(event, Connected):
        return Result("broker", Level.OK, f"{where} took us in after {1000 * (time.monotonic() - begin):.0f} ms")
    reason = event.reason if isinstance(event, (Lost, Stopped)) else "unexpected answer"
    return Result(
        "broker", Level.FAIL, reason, "see [broker] in the configuration; `relief broker check` looks at the other side"
    )


def certificate(settings: Settings, running: Running) -> Iterator[Result]:
    """Our certificate and key exist, fit together and are in date."""
    config = settings.broker
    if config.cert is None or config.key is None:
        local = config.host in ("127.0.0.1", "::1", "localhost")
        level = Level.OK if local or config.transport == "memory" else Level.WARN
        yield Result(
            "certificate", level, "none is configured", "" if local else "relief broker add makes one for this device"
        )
        return
    try:
        ssl.create_default_context().load_cert_chain(config.cert, config.key)
    except (OSError, ssl.SSLError) as error:
        yield Result("certificate", Level.FAIL, f"{config.cert} and {config.key}: {error}", "relief broker add")
        return
    until = decoded(config.cert).get("notAfter")
    left = ssl.cert_time_to_seconds(until) - time.time() if until else float("inf")
    if left < SOON:
        level = Level.FAIL if left < 0 else Level.WARN
        yield Result("certificate", level, f"{config.cert} is valid until {until}", "relief broker renew")
    else:
        yield Result("certificate", Level.OK, f"{config.cert} is valid until {until or 'a day that cannot be read'}")


def power(settings: Settings, running: Running) -> Iterator[Result]:
    """Where joules come from."""
    if settings.device.watts:
        yield Result("power", Level.OK, f"{settings.device.watts:g} W while computing, as configured: not measured")
        return
    if running is not None:
        source = str(running.get("power_source"))
        level = Level.OK if running.get("measured", True) and source not in ("none", "estimate") else Level.WARN
        yield Result("power", level, f"source: {source}", _POWER_ADVICE if level else "")
        return
    try:
        found = find(settings.device.power)
    except (PowerError, ValueError) as error:
        yield Result("power", Level.WARN, f"no source: {error}", _POWER_ADVICE)
        return
    found.monitor.close()
    estimate = found.monitor.source == "estimate"
    yield Result("power", Level.WARN if estimate else Level.OK, found.report(), _POWER_ADVICE if estimate else "")


_POWER_ADVICE = (
    "joules are no measurement; on a Jetson: pip install 'relief-edge[jetson]' and sudo jtop --install-service"
)


def sensors(settings: Settings, running: Running) -> Iterator[Result]:
    """What is configured delivers."""
    config = settings.device
    if running is not None:
        gone = sorted(set(running.get("owned", ())) - set(running.get("modalities", ())))
        here = ", ".join(running.get("modalities", ())) or "none"
        told = f"delivering: {here}; {running.get('windows')} labelled windows"
        why = {m: sensor["reason"] for m, sensor in running.get("sensors", {}).items() if "reason" in sensor}
        told += "".join(f"; {m}: {reason}" for m, reason in sorted(why.items()))
        if gone:
            yield Result(
                "sensors", Level.FAIL, f"{told}; absent: {', '.join(gone)}", "see the device's log for the reason"
            )
        else:
            yield Result("sensors", Level.WARN if why else Level.OK, told)
    elif config.live is None:
        yield _recording(settings)
    else:
        for sensor in config.live.sensors:
            yield _delivers(sensor, settings)


def _recording(settings: Settings) -> Result:
    source = settings.device.source
    try:
        found = find_recordings(source.dataset)
        if source.subject not in found.dataset.subjects():
            known = ", ".join(found.dataset.subjects())
            return Result(
                "sensors", Level.FAIL, f"{found.note}: no subject {source.subject!r}", f"choose one of {known}"
            )
        next(iter(found.dataset.recordings(source.subject)))
    except (ValueError, OSError, DataError) as error:
        return Result("sensors", Level.FAIL, str(error))
    return Result("sensors", Level.OK, f"a recording is played: {found.note}")


def _delivers(config: SensorConfig, settings: Settings) -> Result:
    name = f"{config.kind} {config.where} ({', '.join(config.modalities)})"
    try:
        source = maker(config, settings.broker, settings.device.id)()
        try:
            source.open()
            until, samples = time.monotonic() + PATIENCE, None
            while samples is None and time.monotonic() < until and not source.ended:
                samples = source.read(0.5)
        finally:
            source.close()
    except (OSError, ValueError, DataError) as error:
        return Result("sensors", Level.FAIL, f"{name}: {error}", "is it connected, and may this user read it?")
    if samples is None:
        return Result("sensors", Level.FAIL, f"{name}: nothing within {PATIENCE:g} s", "is it switched on?")
    if clock_trouble := astray(samples, time.time()):
        return Result("sensors", Level.WARN, f"{name}: delivers, but {clock_trouble}")
    return Result("sensors", Level.OK, f"{name}: delivers")


def torch(settings: Settings, running: Running) -> Iterator[Result]:
    """What training needs."""
    if not settings.device.train:
        yield Result("torch", Level.OK, "not needed: device.train is false")
    elif importlib.util.find_spec("torch") is None:
        todo = "pip install 'relief-edge[train]', on a Jetson NVIDIA's own build; or device.train = false"
        yield Result("torch", Level.WARN, "not installed: this device senses and infers but cannot train", todo)
    else:
        yield _imported("torch", "torch")
        if gpu := accelerator.problem(settings.device.accelerator):
            yield Result("torch", Level.FAIL, *gpu.split("; ", 1))


def onnxruntime(settings: Settings, running: Running) -> Iterator[Result]:
    """What inference needs."""
    wanted = settings.device.inference
    if wanted is None:
        yield Result("onnxruntime", Level.OK, "not needed: no inference is configured")
    elif importlib.util.find_spec("onnxruntime") is None:
        yield Result("onnxruntime", Level.FAIL, "not installed", "pip install 'relief-edge[infer]'")
    elif not Path(wanted.kit).is_dir():
        yield Result(
            "onnxruntime",
            Level.FAIL,
            f"the kit {wanted.kit} is not there",
            "relief export makes it, on the coordinator",
        )
    elif (running or {}).get("inference_problem"):
        yield Result("onnxruntime", Level.FAIL, str(running and running["inference_problem"]))
    else:
        yield _imported("onnxruntime", "onnxruntime")


def _imported(check: str, module: str) -> Result:
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a broken build raises anything from OSError to its own types
        return Result(check, Level.FAIL, f"cannot be imported: {error}", f"install another build of {module}")
    return Result(check, Level.OK, str(found.__version__))


def memory(settings: Settings, running: Running) -> Iterator[Result]:
    """Windows, runtime and torch have room."""
    if running is not None:
        yield Result("memory", Level.OK, f"the running device takes {running.get('memory_bytes', 0) >> 20} MiB")
        return
    need = RUNTIME + settings.device.memory + (TORCH if settings.device.train else 0)
    free = _available()
    told = f"{free >> 20:,} MiB available, about {need >> 20:,} MiB needed"
    if free and free < need:
        yield Result("memory", Level.FAIL, told, "lower device.memory, or set device.train = false")
    else:
        yield Result("memory", Level.OK, told)


def _available() -> int:
    """Bytes that processes can have without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


CHECKS: tuple[Check, ...] = (
    agent,
    clock,
    disk,
    broker,
    certificate,
    power,
    sensors,
    torch,
    onnxruntime,
    memory,
)
