"""Two thousand devices send their updates at the same moment: the coordinator journals and answers every one."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from broker_config.launcher import Broker
from coordinator.journal import Journal
from coordinator.rounds import Pace
from coordinator.service import Coordinator
from coordinator.strategies import strategy
from coordinator.strategies.base import Settings
from models import InputSpec, ModelSpec
from models.partition import partition
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport

DEVICES = 2000
FIFTY_KB = ModelSpec(inputs=(InputSpec("acc", 3, 128),), classes=5, widths=(16, 32), bins=4, fusion=72)


@pytest.mark.timeout(240)
def test_2000_updates_of_50_kb_at_once_are_all_journalled_and_answered(broker: Broker, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DEVICES + 1000:
        pytest.skip(f"2,000 connections need as many open files; {hard} are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cut = partition(FIFTY_KB)
    assert 45_000 < 4 * sum(cut.size(block) for block in cut.trainable) < 60_000
    with Broker() as running:
        config = BrokerConfig(port=running.port)
        coordinator = Coordinator(
            fleet="swarm",
            spec=FIFTY_KB,
            strategy=strategy("fedavg")(FIFTY_KB, Settings()),
            pace=Pace(expect=DEVICES, gather=120, margin=120, rounds=1),
            folder=tmp_path / "run",
            control=MqttTransport(config, "coordinator-control"),
            bulk=MqttTransport(config, "coordinator-bulk"),
        )
        stop = threading.Event()
        thread = threading.Thread(target=coordinator.run, args=(stop,))
        thread.start()
        command = [sys.executable, "-m", "tests.swarm", str(running.port), "swarm", str(DEVICES)]
        swarm = subprocess.Popen(
            [*command, json.dumps(FIFTY_KB.to_dict())],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        peak, process = 0, psutil.Process(running.pid)
        while swarm.poll() is None:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
        assert swarm.stdout is not None
        told = json.loads(swarm.stdout.read())
        swarm.stdout.close()
        thread.join(60)
        stop.set()
        coordinator.wake()
        thread.join(30)
    print(told, f"broker's peak {peak / 1e6:.0f} MB")
    assert told["connections lost"] == 0
    assert told["taken by the broker"] == DEVICES
    assert told["accepted"] == DEVICES
    assert peak < 400e6
    journal = Journal.open(tmp_path / "run" / "journal")
    kinds = [record.kind for record in journal.records()]
    journal.close()
    assert kinds.count("commit") == 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
