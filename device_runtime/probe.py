"""Imports all that a runtime needs and says what it found: the test of a version before it is switched to."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import sys
from pathlib import Path

NEEDED = ("device_runtime.runtime", "device_runtime.inference", "protocol.mqtt", "tools.device", "tools.device_process")


def main(arguments: list[str]) -> int:
    """Print one JSON object; an exception where something is missing or the configuration does not fit."""
    for module in NEEDED:
        importlib.import_module(module)
    from device_runtime.runtime import RUNTIME
    from protocol.messages import PROTOCOL

    said: dict[str, object] = {"runtime": RUNTIME, "protocol": PROTOCOL, "python": platform.python_version()}
    for name in ("numpy", "onnxruntime", "torch"):
        if importlib.util.find_spec(name) is not None:
            said[name] = importlib.import_module(name).__version__
    if arguments:
        from device_runtime.config import settings

        said["device"] = settings(Path(arguments[0])).device.id
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
