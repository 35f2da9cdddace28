"""Versions of the model: registered with scores, adopted wave by wave, back by themselves where the score falls."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker_config.launcher import Broker
from coordinator.versions import KEPT, NoVersion, Versions, block_name
from device_runtime.assignments import RELEASE
from device_runtime.shelf import Shelf
from models.partition import Vector, initial
from models.spec import InputSpec, Mode, ModelSpec
from protocol.config import BrokerConfig
from protocol.messages import Report
from protocol.mqtt import MqttTransport
from tests.test_inference_predictor import held
from tests.test_system_mosquitto import relief
from tools.fleet_model import ModelRollout, macro_f1

SPEC = ModelSpec((InputSpec("hand", 2, 40), InputSpec("chest", 2, 40)), classes=4, mode=Mode.LORA, widths=(4,))


# -- the registry -----------------------------------------------------------------------------------------------------


def register(versions: Versions, *numbers: int) -> dict[str, Vector]:
    blocks, base = initial(SPEC)
    for n in numbers:
        fresh = {b: v + np.float32(n) for b, v in blocks.items()}
        versions.register(n, fresh, dict.fromkeys(blocks, n), SPEC, base, {"hand": ([0.0, 1.0], [2.0, 2.0])}, loss=0.5)
    return blocks


def test_a_version_comes_back_whole_with_its_scores_after_a_restart(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    versions.score(10, {"held_out": 0.8, "in_subject": 0.9})  # the evaluation was quicker than the checkpoint
    blocks = register(versions, 10, 20)
    versions.score(20, {"held_out": 0.7})
    again = Versions(tmp_path)
    found = again.get(20)
    assert all(np.array_equal(found.blocks[b], v + np.float32(20)) for b, v in blocks.items())
    assert found.meta["scales"] == {"hand": [[0.0, 1.0], [2.0, 2.0]]}
    assert found.versions == dict.fromkeys(blocks, 20)
    table = again.table()
    assert [(one["version"], one["score"], one["best"]) for one in table] == [(20, 0.7, False), (10, 0.8, True)]
    assert len({one["digest"] for one in table}) == 2


def test_the_best_and_what_devices_can_get_outlast_newer_versions(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    register(versions, 1, 2, 3)
    versions.score(1, {"in_subject": 0.9})
    assert versions.publish(2) == []
    register(versions, *range(4, 4 + 2 * KEPT))
    assert sorted(versions.known)[:2] == [1, 2]
    assert len(versions.known) == KEPT + 2
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{v:08d}" for v in versions.known}
    assert versions.publish(18) == []
    assert versions.publish(19) == [2]
    assert Versions(tmp_path).published == [18, 19]


def test_what_is_not_there_or_damaged_is_refused_by_its_number(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for wrong in (7, "7", None, [1], 1.5):
        with pytest.raises(NoVersion, match="not registered; there are: none yet"):
            versions.get(wrong)
    register(versions, 7, 8)
    spoilt = next((tmp_path / "checkpoint-00000008").glob("adapter_model*"))
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    with pytest.raises(NoVersion, match="version 8 cannot be read"):
        versions.get(8)
    assert versions.get(7).version == 7


def test_both_sides_publish_under_the_same_name() -> None:
    assert block_name("hand", 12) == "hand" + RELEASE.format(12)


# -- the device's shelf -----------------------------------------------------------------------------------------------


def test_an_adopted_version_lies_on_the_devices_disk_and_damage_counts_as_absence(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.in_use() == []
    blocks = held(initial(SPEC)[0], 3, center=0.5)
    for version in (3, 4, 5):
        shelf.put(version, blocks)
    shelf.point([4, 5])
    again = Shelf(tmp_path)
    assert again.in_use() == [4, 5]
    assert again.get(5) == blocks
    assert again.get(3) is None, "nobody goes back so far"
    file = tmp_path / "model" / "v4"
    for content in (b"", file.read_bytes()[:-1], file.read_bytes() + b"x", os.urandom(500)):
        file.write_bytes(content)
        assert again.get(4) is None
    (tmp_path / "model" / "in_use").write_text("{")
    assert again.in_use() == []


# -- scores -----------------------------------------------------------------------------------------------------------


def judged(*confusions: object) -> list[Report]:
    return [Report(id="e", kind="evaluate", ok=True, values={"confusion": c}) for c in confusions]


def test_a_waves_score_is_the_macro_f1_of_all_its_windows() -> None:
    from coordinator.evaluation import macro_f1 as pooled

    one, two = [[8, 2, 0], [1, 9, 0], [0, 0, 0]], [[0, 0, 0], [0, 5, 5], [0, 0, 0]]
    assert macro_f1(judged(one, two)) == pytest.approx(pooled(np.add(one, two).astype(float)))
    assert macro_f1(judged([[0, 0], [0, 0]], "nonsense", [1, 2], [[1, 2, 3]])) is None
    assert macro_f1([]) is None


# -- the real thing ---------------------------------------------------------------------------------------------------

NAMES = ("one", "two")


@pytest.fixture
def system(broker: Broker, fleet: str, tmp_path: Path) -> Iterator[tuple[Path, Callable[..., subprocess.Popen[bytes]]]]:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra: infer)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    from models.export import export
    from tools.configuration import dataset, read

    text = f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[coordinator]\nfolder = "run"\nexpect = 2\nrounds = 4\n'
    for name in NAMES:
        text += f'[[device]]\nid = "{name}"\nstate = "state"\ntelemetry = 0\npower = []\nwill_delay = 0\n'
        text += '[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.1]\n'
        text += '[device.inference]\nkit = "kit"\nevery = 0.1\n'
    (tmp_path / "fleet.toml").write_text(text)
    file = read(tmp_path / "fleet.toml")
    spec = file.model.spec(dataset(file.model.dataset))
    blocks, base = initial(spec)
    export(spec, blocks, base, tmp_path / "kit", versions=dict.fromkeys(blocks, 0))
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        running.append(relief(*arguments, "--config", str(tmp_path / "fleet.toml"), log=tmp_path / "log"))
        return running[-1]

    yield tmp_path, start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def asked(folder: Path, *arguments: str, expected: int = 0) -> str:
    """One `relief fleet` verb to its end: what it said."""
    command = [sys.executable, "-m", "tools.cli", "fleet", *arguments, "--config", str(folder / "fleet.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stdout + done.stderr + (folder / "log").read_text()[-3000:]
    return done.stdout + done.stderr


@contextlib.contextmanager
def listening(broker: Broker, fleet: str) -> Iterator[ModelRollout]:
    """Somebody who hears what devices say of themselves."""
    who = "operator-test-update"
    transport = MqttTransport(BrokerConfig(port=broker.port), who)
    rollout = ModelRollout(fleet, transport, who, say=lambda text: None)
    try:
        rollout.open()
        yield rollout
    finally:
        transport.close()


def releases(broker: Broker, fleet: str, wanted: dict[str, int]) -> bool:
    """Whether the devices say soon that they predict by these versions."""
    with listening(broker, fleet) as r:

        def found() -> bool:
            heard = {d: r.devices[d].status for d in wanted if d in r.devices}
            return {d: s.release for d, s in heard.items() if s.online} == wanted

        r.until(found, 30.0)
        return found()


@pytest.mark.timeout(400)
def test_a_good_version_is_adopted_and_a_scrambled_one_goes_back_by_itself(
    system: tuple[Path, Callable[..., subprocess.Popen[bytes]]], broker: Broker, fleet: str
) -> None:
    folder, start = system
    devices = {name: start("device", "run", "--device", name) for name in NAMES}

    assert start("coordinator", "run").wait(180) == 0
    good = 4  # what a run ends with is registered
    versions = Versions(folder / "run" / "versions")
    saved = versions.get(good)
    draw = np.random.default_rng(0)
    scrambled = {b: draw.permutation(v) for b, v in saved.blocks.items()}
    scales = {m: (c, w) for m, (c, w) in saved.meta["scales"].items()}
    versions.register(9999, scrambled, saved.versions, saved.spec, saved.base, scales)

    # From here on they predict only, so that nothing is trained beside what is judged.
    for process in devices.values():
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    text = (folder / "fleet.toml").read_text().replace("rounds = 4\n", "")
    (folder / "fleet.toml").write_text(text.replace("power = []\n", "power = []\ntrain = false\n"))
    start("coordinator", "run")
    devices = {name: start("device", "run", "--device", name) for name in NAMES}
    assert releases(broker, fleet, dict.fromkeys(NAMES, 0))
    table = json.loads(asked(folder, "versions", "--json"))
    assert {good, 9999} <= {one["version"] for one in table}
    assert "version" in asked(folder, "versions")

    assert "version 7777 is not registered; there are: 4, 9999" in asked(folder, "adopt", "7777", expected=1)
    waves = ("--canary", "1", "--then", "100%", "--watch", "1", "--margin", "0.1")
    said = asked(folder, "adopt", str(good), *waves)
    assert "canary: one\n" in said
    assert f"wave 2: 1 of 1 predict by version {good}, macro-F1 " in said
    assert releases(broker, fleet, {"one": good, "two": good})

    devices["one"].send_signal(signal.SIGKILL)
    devices["one"].wait()
    start("device", "run", "--device", "one")
    assert releases(broker, fleet, {"one": good, "two": good}), "a restart forgets what was adopted"

    said = asked(folder, "adopt", "9999", *waves, expected=1)
    assert "canary: back with one\n" in said
    assert "canary was not well, nothing more is updated: one: macro-F1 fell from" in said
    assert "wave 2" not in said
    assert releases(broker, fleet, {"one": good, "two": good})

    assert "back on what they used before: one, two" in asked(folder, "rollback")
    assert releases(broker, fleet, {"one": 0, "two": 0}), "what was not well is nothing to go back to"
