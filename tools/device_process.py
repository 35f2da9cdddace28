"""The process that a device's life is: `relief device run` becomes it once its options are known.

It starts from a clean interpreter, without the command line's libraries (a sixth of the memory that an idle device may
take) and with an allocator for few threads, which only a new process can be. The process id stays.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from device_runtime.config import Settings
    from device_runtime.runtime import Runtime

ENVIRONMENT = {
    # A device computes on one thread; each further one would cost memory before it did anything. Read by numpy.
    "OPENBLAS_NUM_THREADS": "1",
    # glibc gives each thread an arena of its own, which never shrinks; ours take turns anyway.
    "MALLOC_ARENA_MAX": "1",
}


def become(config: Path, device: str | None, *, verbose: bool, metrics: str | None) -> NoReturn:
    """Replace this process by a device's; what the environment already says stays."""
    sys.stdout.flush()
    sys.stderr.flush()
    options = json.dumps({"config": str(config), "device": device, "verbose": verbose, "metrics": metrics})
    os.execve(sys.executable, [sys.executable, __file__, options], {**ENVIRONMENT, **os.environ})


def main(options: str) -> NoReturn:
    """Live with these options until a signal; exits with the code that `relief` promises."""
    from tools.exit_codes import told

    asked = json.loads(options)
    try:
        code = _run(Path(asked["config"]), asked["device"], verbose=asked["verbose"], metrics=asked["metrics"])
    except Exception as error:
        wrong, lines = told(error)
        code = wrong.number
        print(*lines, sep="\n", file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed. The interpreter's own end would take torch apart for a second, maybe under a running step.
    os._exit(code)


def _run(config: Path, device: str | None, *, verbose: bool, metrics: str | None) -> int:
    from device_runtime.config import settings
    from tools import log as logs

    logs.configure(logging.DEBUG if verbose else logging.INFO)
    known = settings(config, device)
    logs.bind(fleet=known.fleet, device=known.device.id)
    return _live(known, metrics)


def _live(known: Settings, metrics: str | None) -> int:
    from device_runtime import accelerator
    from device_runtime.quota import limit
    from device_runtime.runtime import Runtime
    from device_runtime.senses import senses
    from device_runtime.worker import prepare, torch_is_here
    from protocol.connection import connection
    from protocol.errors import ConfigError

    log, config = logging.getLogger("relief.device"), known.device
    trains = config.train and torch_is_here()
    sensing, note = senses(config, known.broker, trains=trains)
    log.info("device %s: %s", config.id, note)
    if trains:
        prepare()
        if problem := accelerator.problem(config.accelerator):
            raise ConfigError(f"device {config.id}", [problem])
    runtime = Runtime(known, connection(known.broker, config.id), sensing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: runtime.stop(signal.Signals(n).name))
    end = _prometheus(runtime, metrics) if metrics else None
    try:
        with limit(config.quota) as quota:
            log.info("CPU: %s", quota)
            return runtime.run()
    finally:
        if end:
            end()


def _prometheus(runtime: Runtime, where: str) -> Callable[[], None]:
    from device_runtime import telemetry

    try:
        from device_runtime.metrics import DeviceMetrics
        from tools.metrics.endpoint import address, endpoint
    except ImportError:
        raise ImportError('--metrics needs pip install "relief-edge[metrics]"') from None
    port, end = endpoint(DeviceMetrics(lambda: telemetry.values(runtime)), *address(where))
    logging.getLogger("relief.device").info("metrics: http://%s:%d/metrics", address(where)[0], port)
    return end


if __name__ == "__main__":
    # Run by its path, so that no folder of this name in the working directory can take its place.
    home = str(Path(sys.path.pop(0)).parent)
    if home not in sys.path:
        sys.path.insert(0, home)
    main(sys.argv[1])
