"""`relief device accept`: what only a real board can show, tried in a few minutes and written down in one file.

Nothing in the file names the board's owner: no serial number, host name, address or recording; sensors by their kind.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from device_runtime.power import ORDER, Meter, Monitor, PowerError, find, temperatures
from device_runtime.power.condition import SYS, nvpmodel_mode
from device_runtime.power.estimate import PROC
from tools.shown import Json, print_json

OK, POOR, MISSING = "ok", "poor", "missing"  # as it should be; works, but look at it; not here or not working
# Keeps every core busy until its time is over.
_LOAD = """
import sys, time, numpy
end, a = time.monotonic() + float(sys.argv[1]), numpy.ones((700, 700))
while time.monotonic() < end:
    a @ a
"""
_AGREE = 0.15  # two sources of one board differ by less than this share under the same load
_COOL = 0.9  # of its highest clock that a processor should keep under load


@dataclass
class Finding:
    """One line of the report: its verdict, what was seen in words, and the figures."""

    check: str
    verdict: str
    said: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """Where to look and how long: `seconds` at rest and again under load."""

    root: Path = SYS
    proc: Path = PROC
    seconds: float = 20.0
    kit: Path | None = None
    config: Path | None = None
    device: str | None = None


def accept(
    kit: Annotated[Path | None, typer.Option(help="A kit from `relief export`, to measure inference.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A configuration whose sensors to try.")] = None,
    device: Annotated[str | None, typer.Option("--device", "-d", help=r"Which [\[device]] of it.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds at rest, and again under load.")] = 20.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The report.")] = Path("acceptance.json"),
    as_json: Json = False,
) -> None:
    """Try what only a real board can show (power, clocks, providers, sensors) and write one report to send back.

    Exit code 1 where something is missing that a Jetson has.

    Example: relief device accept --kit kits/current --config fleet.toml --device wrist-1
    """
    findings = []
    for finding in examine(Board(seconds=seconds, kit=kit, config=config, device=device)):
        findings.append(finding)
        if as_json:
            continue
        typer.secho(f"{finding.verdict:8}", nl=False, fg={OK: "green", POOR: "yellow", MISSING: "red"}[finding.verdict])
        typer.echo(f"{finding.check}: {finding.said}")
    table = [asdict(f) for f in findings]
    out.write_text(json.dumps({"format": 1, "findings": table}, indent=1) + "\n")
    if as_json:
        print_json(table)
    else:
        typer.echo(f"written: {out}")
    raise typer.Exit(int(any(f.verdict == MISSING for f in findings)))


def examine(board: Board) -> Iterator[Finding]:
    """All checks, one after the other; one that breaks is a finding, never an end."""
    checks: list[Callable[[Board], Finding]] = [machine, power_mode]
    checks += [lambda b, s=source: power_source(b, s) for source in ORDER[:-1]]  # type: ignore[misc]
    checks += [load, torch_training, inference, iio_sensors, configured_sensors]
    for check in checks:
        try:
            yield check(board)
        except Exception as error:  # on hardware that nobody here has seen anything can happen, and all of it is news
            yield Finding(getattr(check, "__name__", "check"), MISSING, f"{type(error).__name__}: {error}")


def machine(board: Board) -> Finding:
    model = _text(board.proc / "device-tree/model") or "no device tree: not a Jetson"
    release = _text(Path("/etc/nv_tegra_release")).split(", GCID")[0].lstrip("# ") or "no L4T"
    memory = re.search(r"MemTotal:\s+(\d+)", _text(board.proc / "meminfo"))
    values = {
        "model": model,
        "l4t": release,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
    }
    return Finding(
        "machine", OK if "etson" in model else POOR, f"{model}; {release}; Python {values['python']}", values
    )


def power_mode(board: Board) -> Finding:
    mode = nvpmodel_mode()
    return Finding("power mode", OK if mode else MISSING, mode or "nvpmodel says nothing", {"mode": mode})


# -- power ---------------------------------------------------------------------------------------------------


def power_source(board: Board, source: str) -> Finding:
    """A source by itself at rest, whether or not an earlier one would have been taken."""
    try:
        with _open(board, source) as monitor:
            meter = Meter(monitor)
            meter.start()
            watts = meter.measure_idle(min(board.seconds, 5.0))
            sample, energy = meter.latest(), meter.stop()
    except PowerError as error:
        # RAPL is for x86: its absence from a Jetson is as it should be.
        return Finding(
            f"power by {source}", OK if source == "rapl" else MISSING, error.reason.removeprefix(f"{source}: ")
        )
    values: dict[str, Any] = {"watts_at_rest": watts, "errors": meter.errors, "covered_seconds": energy.seconds}
    if sample is not None:
        values |= {"source": sample.source, "rails": dict(sample.rails), "summed": list(sample.summed)}
    known = getattr(monitor, "board", "") != "unknown board"
    summed = ", ".join(sample.summed) if sample else "nothing"
    said = f"{watts:.2f} W at rest, the sum of {summed}"
    return Finding(
        f"power by {source}", OK if known else POOR, said + ("" if known else " (a board not known yet)"), values
    )


def load(board: Board) -> Finding:
    """Every core busy: watts above rest by every source, agreement between them, clocks and temperatures."""
    watts: dict[str, tuple[float, float]] = {}
    before = temperatures(board.root)
    clocks: list[float] = []
    for source in ("jtop", "ina3221", "rapl"):
        try:
            with _open(board, source) as monitor:
                watts[source] = _rest_and_busy(monitor, board, clocks)
        except PowerError:
            continue
    if not watts:
        _busy(board.seconds, lambda: clocks.extend(_clocks(board.root)))
    after = temperatures(board.root)
    values = {
        "watts": {s: {"rest": rest, "busy": busy} for s, (rest, busy) in watts.items()},
        "celsius_before": before,
        "celsius_after": after,
        "lowest_clock_share": min(clocks, default=None),
        "overcurrent_events": _events(board.root),
    }
    said = ", ".join(f"{s} {rest:.1f} to {busy:.1f} W" for s, (rest, busy) in watts.items()) or "no source of power"
    trouble = _load_trouble(watts, clocks)
    hottest = max(after.values(), default=None)
    said += f"; hottest {hottest:.0f} C" if hottest is not None else ""
    return Finding("load", POOR if trouble else OK if watts else MISSING, "; ".join([said, *trouble]), values)


def _load_trouble(watts: dict[str, tuple[float, float]], clocks: list[float]) -> list[str]:
    trouble = [f"{s}: no more power under load than at rest" for s, (rest, busy) in watts.items() if busy <= rest]
    busy = [b for _, b in watts.values()]
    if busy and max(busy) > (1 + _AGREE) * min(busy):
        trouble.append(f"the sources differ by {max(busy) / min(busy) - 1:.0%}")
    if clocks and min(clocks) < _COOL:
        trouble.append(
            f"a core fell to {min(clocks):.0%} of its highest clock: throttled, or limited by the power mode"
        )
    return trouble


def _rest_and_busy(monitor: Monitor, board: Board, clocks: list[float]) -> tuple[float, float]:
    meter = Meter(monitor)
    meter.start()
    rest = meter.measure_idle(board.seconds)
    with _all_cores(board.seconds + 1.0) as work:
        time.sleep(1.0)
        mark = meter.mark()
        for _ in range(max(1, int(board.seconds))):
            time.sleep(min(1.0, board.seconds))
            clocks.extend(_clocks(board.root))
        busy = meter.since(mark)
        work.terminate()
    meter.stop()
    return rest, busy.joules / busy.seconds if busy.seconds else 0.0


def _busy(seconds: float, look: Callable[[], None]) -> None:
    with _all_cores(seconds) as work:
        time.sleep(seconds / 2)
        look()
        work.terminate()


def _all_cores(seconds: float) -> subprocess.Popen[bytes]:
    threads = {"OPENBLAS_NUM_THREADS": str(os.cpu_count() or 1)}  # a device's own process computes on one
    return subprocess.Popen([sys.executable, "-c", _LOAD, str(seconds)], env={**os.environ, **threads})


@contextmanager
def _open(board: Board, source: str) -> Iterator[Monitor]:
    monitor = find((source,), root=board.root, proc=board.proc).monitor
    try:
        yield monitor
    finally:
        monitor.close()


def _clocks(root: Path) -> list[float]:
    """Each core's clock as a share of its highest."""
    shares = []
    for core in (root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"):
        now, top = _text(core / "scaling_cur_freq"), _text(core / "cpuinfo_max_freq")
        if now.isdigit() and top.isdigit() and int(top):
            shares.append(int(now) / int(top))
    return shares


def _events(root: Path) -> dict[str, int]:
    """Times that the board slowed itself down for over-current, as Orin counts them."""
    counts = {}
    for file in sorted((root / "class/hwmon").glob("hwmon*/oc*_event_cnt")):
        text = _text(file)
        if text.isdigit():
            counts[file.name.removesuffix("_event_cnt")] = int(text)
    return counts


# -- computing -----------------------------------------------------------------------------------------------


def torch_training(board: Board) -> Finding:
    """A training step of a small network, on the processor and on CUDA where torch has it."""
    try:
        import torch
    except ImportError:
        return Finding("torch", POOR, "not installed: this device senses, infers and reports, and does not train")
    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    for place in ("cpu", "cuda"):
        if place == "cuda" and not torch.cuda.is_available():
            continue
        x = torch.randn(16, 9, 125, device=place)
        layers = torch.nn.Sequential(
            torch.nn.Conv1d(9, 32, 5, 2), torch.nn.ReLU(), torch.nn.Conv1d(32, 64, 5, 2), torch.nn.Flatten()
        ).to(place)

        def step(x: torch.Tensor = x, layers: torch.nn.Module = layers, place: str = place) -> None:
            layers(x).square().mean().backward()
            if place == "cuda":
                torch.cuda.synchronize()

        found[f"step_ms_{place}"] = _median_ms(step)
    said = f"{torch.__version__}, step {found['step_ms_cpu']:.2f} ms on the processor"
    if "step_ms_cuda" in found:
        said += f", {found['step_ms_cuda']:.2f} ms on {torch.cuda.get_device_name()}"
    return Finding(
        "torch", OK if "step_ms_cuda" in found else POOR, said + ("" if found["cuda"] else ", no CUDA"), found
    )


def inference(board: Board) -> Finding:
    """Every provider on the same windows: its latency, and by how much its answers differ from the processor's."""
    import numpy as np

    if board.kit is None:
        return Finding("inference", POOR, "not measured: give a kit with --kit")
    from device_runtime.inference import PROVIDERS, Engine
    from models.kit import load as load_kit

    kit = load_kit(board.kit)
    rng = np.random.default_rng(0)
    x = {i.name: rng.standard_normal((1, i.channels, i.samples)).astype(np.float32) for i in kit.spec.inputs}
    expected = Engine(kit, providers=("cpu",)).predict(x).probabilities
    values: dict[str, Any] = {}
    for name in reversed(PROVIDERS):
        engine = Engine(kit, providers=(name,))
        if engine.providers[0] != PROVIDERS[name]:
            continue
        began = time.perf_counter()
        error = float(np.abs(engine.predict(x).probabilities - expected).max())
        first = time.perf_counter() - began
        values[name] = {
            "first_s": first,
            "ms": _median_ms(lambda engine=engine: engine.predict(x)),  # type: ignore[misc]
            "difference_to_cpu": error,
        }
    said = ", ".join(f"{name} {v['ms']:.3f} ms" for name, v in values.items())
    return Finding(
        "inference", OK if len(values) > 1 else POOR, said + ("" if len(values) > 1 else " and no GPU"), values
    )


def _median_ms(run: Callable[[], object], times: int = 50) -> float:
    taken = []
    for n in range(times + 5):
        began = time.perf_counter()
        run()
        if n >= 5:  # the first ones warm up
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


# -- sensors -------------------------------------------------------------------------------------------------


def iio_sensors(board: Board) -> Finding:
    """What the kernel offers, and a second of it by polling."""
    from sensors.iio import IioPolling, iio_devices

    values: dict[str, Any] = {}
    for device in iio_devices(board.root):
        source = IioPolling(device.node, device.channels, "seen", 20.0, root=board.root, piece_s=1.0)
        try:
            source.open()
            samples = source.read(3.0)
            seen = samples.streams["seen"] if samples else None
            values[device.name] = {
                "channels": list(device.channels),
                "rate": device.rate(),
                "mean": seen.mean(axis=0).tolist() if seen is not None else None,
                "spread": seen.std(axis=0).tolist() if seen is not None else None,
            }
        except OSError as error:
            values[device.name] = {"error": str(error)}
        finally:
            source.close()
            source.read(0)
    others = {
        "bluetooth": (board.root / "class/bluetooth").is_dir() and any((board.root / "class/bluetooth").iterdir()),
        "serial": sum(1 for _ in Path("/dev").glob("ttyUSB*")) + sum(1 for _ in Path("/dev").glob("ttyACM*")),
    }
    said = ", ".join(f"{name} ({len(v.get('channels', ()))} channels)" for name, v in values.items()) or "no IIO device"
    said += f"; Bluetooth {'yes' if others['bluetooth'] else 'no'}, {others['serial']} serial ports"
    return Finding("sensors", OK if values else POOR, said, {"iio": values, **others})


def configured_sensors(board: Board) -> Finding:
    """The sensors of a configuration for ten seconds: which deliver, and how many gaps they have."""
    if board.config is None:
        return Finding("configured sensors", POOR, "not tried: give a configuration with --config")
    from device_runtime.config import settings
    from device_runtime.live import live

    chosen = settings(board.config, board.device)
    if chosen.device.live is None:
        return Finding("configured sensors", POOR, "this device replays a recording")
    sensing = live(chosen.device.live, chosen.broker, chosen.device.id, 1 << 24)
    sensing.open(lambda: None)
    time.sleep(min(10.0, board.seconds))
    health, present = sensing.health, sensing.modalities
    sensing.close()
    values = {name: {"state": h.state.value, "gaps": h.gaps, "late": h.late} for name, h in health.items()}
    silent = [f"{name}: {h.reason or h.state.value}" for name, h in health.items() if name not in present]
    said = "; ".join([f"{len(present)} of {len(health)} deliver", *silent])
    return Finding("configured sensors", MISSING if silent else OK, said, values)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
