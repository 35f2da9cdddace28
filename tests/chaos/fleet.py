"""A real fleet: Mosquitto, `relief coordinator run` and devices, each a process with a cable of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from broker_config.launcher import Broker
from tests.chaos.cable import Cable

NAME = "chaos"
ROOT = Path(__file__).parent.parent.parent


class Fleet:
    """`processes` by name: "coordinator" and the devices; the broker is apart. All end with its `with` block."""

    def __init__(self, folder: Path, devices: int = 8) -> None:
        self.folder, self.broker = folder, Broker()
        self.devices = [f"device-{n}" for n in range(devices)]
        self.cables: dict[str, Cable] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Fleet:
        self.broker.start()
        try:
            for name in ("coordinator", *self.devices):
                self.cables[name] = Cable(self.broker.port)
                (self.folder / f"{name}.toml").write_text(self._configuration(name))
                self.start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.processes:
            self.end(name)
        for cable in self.cables.values():
            cable.close()
        self.broker.stop()

    @property
    def run(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "run"

    def start(self, name: str) -> None:
        """Start a party's process."""
        command = [sys.executable, "-m", "tools.cli"]
        command += ["coordinator", "run"] if name == "coordinator" else ["device", "run", "--device", name]
        command += ["--config", str(self.folder / f"{name}.toml")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder, env=environment
            )

    def kill(self, name: str) -> None:
        """kill -9."""
        if name == "broker":
            self.broker.kill()
            return
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def signal(self, name: str, number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT."""
        os.kill(self.broker.pid if name == "broker" else self.processes[name].pid, number)

    def restart(self, name: str) -> None:
        if name == "broker":
            self.broker.restart()
        else:
            self.start(name)

    def end(self, name: str) -> None:
        process = self.processes[name]
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)

    def dead(self) -> list[str]:
        """Parties that ended although nobody ended them, with the end of what they said."""
        found = []
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-3:]
                found.append(f"{name} ended with {process.returncode}: {' / '.join(log)}")
        return found

    def _configuration(self, party: str) -> str:
        from sensors.synthetic import Synthetic

        names = [m.name for m in Synthetic().modalities]
        text = (
            f'fleet = "{NAME}"\n[broker]\nport = {self.cables[party].port}\n'
            f'[coordinator]\nfolder = "{self.run}"\nexpect = {len(self.devices)}\ngather = 30\nmargin = 2\n'
            f"[coordinator.training]\nepochs = 1\n"
        )
        for n, device in enumerate(self.devices):
            owned = names[: 1 + n % len(names)] if n % 2 else names[-1 - n % len(names) :]
            text += f'[[device]]\nid = "{device}"\nmodalities = {json.dumps(owned)}\nstate = "{self.folder}/state"\n'
            text += 'telemetry = 0\nwill_delay = 2\n[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.1]\n'
        return text


def until(true: object, patience: float) -> bool:
    """Whether the callable `true` holds within `patience` seconds."""
    end = time.monotonic() + patience
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
