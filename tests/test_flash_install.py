"""A bundle for this very machine, really installed, started by the launcher and updated over a real broker."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_config.launcher import Broker
from coordinator.orders import passed_on
from device_runtime.bundle import BadBundle
from device_runtime.slots import Slots
from protocol.config import BrokerConfig
from protocol.messages import PROTOCOL, Request
from protocol.mqtt import MqttTransport
from tests.arm64.variants import CANNOT_START, variant
from tests.parties import eventually
from tools.flashing.bundle import Bundle, pack
from tools.flashing.targets import Target
from tools.flashing.wheelhouse import Wheelhouse, gather
from tools.fleet_update import RuntimeRollout, Serving, chosen
from tools.rollout import RolloutFailed, waves

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
# A device that starts and says it is well, but ends as soon as it has met the broker.
ENDS_SOON = {
    "device_runtime/runtime.py": "\n_confirm = confirm\n\n\ndef confirm():\n    import os\n\n    os._exit(1)\n",
}


@dataclass
class Workshop:
    """Bundles of several versions over one wheelhouse."""

    folder: Path
    wheels: Wheelhouse
    target: Target
    _made: dict[str, Bundle] = field(default_factory=dict)

    def bundle(self, version: str, changes: dict[str, str] | None = None) -> Bundle:
        """The project's source as `version`."""
        if version not in self._made:
            wheel = variant(self.folder, version, changes)
            own = self.folder / f"wheels-{version}"
            own.mkdir()
            for one in self.wheels.folder.glob("*.whl"):
                if one != self.wheels.project:
                    os.link(one, own / one.name)
            os.link(wheel, own / wheel.name)
            pins = re.sub(r"^relief-edge.*$", f"relief-edge=={version}", self.wheels.requirements, flags=re.M)
            self._made[version] = pack(self.target, Wheelhouse(own, own / wheel.name, pins, False), self.folder / "out")
        return self._made[version]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("install.sh runs as root on Linux")
    folder = tmp_path_factory.mktemp("workshop")
    here = Target("here", HERE, "", (), "this machine", arch=platform.machine())
    try:
        project = variant(folder / "base", "0.1.0")
        wheels = gather(here, project, folder / "wheels", extras=())
    except (BadBundle, ValueError) as error:
        pytest.skip(f"wheels cannot be fetched here: {error}")
    return Workshop(folder, wheels, here)


@dataclass
class Board:
    """A place on this machine that install.sh takes for a board."""

    folder: Path
    name: str
    config: str
    running: subprocess.Popen[bytes] | None = None

    @property
    def slots(self) -> Slots:
        return Slots(self.folder / "opt")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "RELIEF_BASE": str(self.folder / "opt"),
            "RELIEF_ETC": str(self.folder / "etc"),
            "RELIEF_UNITS": str(self.folder / "units"),
            "RELIEF_CONFIG": str(self.folder / "etc/device.toml"),
            "RELIEF_PYTHON": sys.executable,
        }

    def install(self, bundle: Bundle) -> subprocess.CompletedProcess[str]:
        (self.folder / "etc").mkdir(parents=True, exist_ok=True)
        (self.folder / "units").mkdir(exist_ok=True)
        (self.folder / "etc/device.toml").write_text(self.config)
        unpacked = self.folder / "unpacked"
        subprocess.run(["rm", "-rf", unpacked], check=True)
        unpacked.mkdir()
        subprocess.run(["tar", "-xf", bundle.path, "-C", unpacked], check=True)
        return subprocess.run(
            ["sh", unpacked / "install.sh"], env=self.environment(), capture_output=True, text=True, timeout=300
        )

    def start(self) -> None:
        """As systemd would: again and again."""
        loop = f"while :; do sh {self.folder / 'opt/launch'}; [ $? = 75 ] || sleep 0.5; done"
        with (self.folder / "log").open("ab") as log:
            self.running = subprocess.Popen(
                ["sh", "-c", loop], env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        if self.running:
            os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None


@pytest.fixture
def boards(broker: Broker, fleet: str, tmp_path: Path) -> Iterator[Callable[[str], Board]]:
    made: list[Board] = []

    def make(name: str) -> Board:
        folder = tmp_path / name
        text = f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[[device]]\nid = "{name}"\npower = []\n'
        text += f'state = "{folder / "state"}"\nwill_delay = 0\n[device.source]\nspeed = inf\npart = [0.0, 0.05]\n'
        made.append(Board(folder, name, text))
        return made[-1]

    yield make
    for board in made:
        board.stop()


@pytest.mark.timeout(600)
def test_install_sh_installs_and_refuses_what_cannot_start(workshop: Workshop, boards: Callable[[str], Board]) -> None:
    board = boards("wrist")
    done = board.install(workshop.bundle("0.1.0"))
    assert done.returncode == 0, done.stderr
    assert board.slots.current == "a"
    board.slots.confirm()
    assert {p.name for p in (board.folder / "units").iterdir()} >= {"relief-device.service", "relief-firstboot.service"}
    before = board.slots.current
    done = board.install(workshop.bundle("0.1.7", CANNOT_START))
    assert done.returncode == 2
    assert done.stderr.strip() == "relief: the new version: ImportError: made to fail"
    assert (board.slots.current, board.slots.trial) == (before, None)
    said = subprocess.run(
        [board.folder / "opt/current/bin/relief", "device", "check", "-c", board.folder / "etc/device.toml", "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert '"broker"' in said.stdout


@pytest.mark.timeout(600)
def test_a_fleet_is_updated_by_waves_and_a_bad_version_goes_back(
    workshop: Workshop, boards: Callable[[str], Board], broker: Broker, fleet: str, tmp_path: Path
) -> None:
    party = [boards(name) for name in ("one", "two")]
    for board in party:
        assert board.install(workshop.bundle("0.1.0")).returncode == 0
        board.start()
    (tmp_path / "fleet.toml").write_text(f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n')
    command = [sys.executable, "-m", "tools.cli", "coordinator", "run", "--config", str(tmp_path / "fleet.toml")]
    coordinator = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    said: list[str] = []
    who = "operator-test-update"
    transport = MqttTransport(BrokerConfig(port=broker.port), who)
    rollout = RuntimeRollout(fleet, transport, who, patience=90.0, watch=1.0, say=said.append)
    servers = []
    try:
        rollout.open()
        assert eventually(lambda: all(b.slots.trial is None for b in party), 60), "never confirmed"
        rollout.until(lambda: len(rollout.devices) == 2, 30)

        def give(bundle: Bundle) -> None:
            server = Serving(bundle.path, "127.0.0.1")
            servers.append(server)
            rollout.args = {"url": server.url, "sha256": bundle.digest, "size": bundle.size}
            rollout.runtime = bundle.manifest.runtime
            rollout.run(waves(chosen(rollout.devices, bundle.manifest, [], said.append), 1, "100%"))

        give(workshop.bundle("0.1.1"))
        assert {b.slots.manifest(b.slots.current or "").runtime for b in party} == {"0.1.1"}  # type: ignore[union-attr]
        assert said[0] == "canary: one"
        assert "wave 2: two" in said
        with pytest.raises(RolloutFailed, match="canary was not well, nothing more is updated: one: the new version"):
            give(workshop.bundle("0.1.7", CANNOT_START))
        rollout.patience = 45.0
        with pytest.raises(RolloutFailed, match="canary was not well"):
            give(workshop.bundle("0.1.8", ENDS_SOON))
        assert eventually(lambda: party[0].slots.trial is None, 60)
        assert {b.slots.manifest(b.slots.current or "").runtime for b in party} == {"0.1.1"}  # type: ignore[union-attr]
        rollout.runtime = "0.1.1"
        rollout.until(lambda: rollout.has("one"), 30)
        assert rollout.has("one"), "it does not run after its way back"
    finally:
        transport.close()
        coordinator.terminate()
        coordinator.wait(10)
        for server in servers:
            server.close()


@given(
    st.integers(0, 40), st.integers(1, 5), st.one_of(st.integers(1, 9).map(str), st.integers(1, 100).map("{}%".format))
)
def test_every_device_is_in_one_wave_and_the_canary_is_first(count: int, canary: int, then: str) -> None:
    names = [f"d{n:02d}" for n in range(count)]
    planned = waves(reversed(names), canary, then)
    assert [name for wave in planned for name in wave] == names
    assert all(planned)
    assert not planned or len(planned[0]) == min(canary, count)


@pytest.mark.parametrize(("canary", "then"), [(0, "25%"), (1, "0%"), (1, "many"), (1, "-3"), (1, "2.5")])
def test_a_plan_that_would_never_end_is_refused(canary: int, then: str) -> None:
    with pytest.raises(ValueError, match="write a number of devices, or a percentage"):
        waves(["a", "b", "c"], canary, then)


def request(**args: object) -> Request:
    plain = {"id": "r", "operator": "operator-a-b", "kind": "order", "args": args}
    return Request.model_validate(plain)


def test_an_operators_order_reaches_the_devices_it_names_and_no_other() -> None:
    orders, told = passed_on(request(devices=["a"], order="update_runtime", args={"back": True}), {"a", "b"})
    assert told.ok
    assert [(d, o.kind, o.args, o.id) for d, o in orders.items()] == [("a", "update_runtime", {"back": True}, "r")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"devices": ["c"], "order": "profile"}, "never heard of c"),
        ({"devices": [], "order": "profile"}, "no list of names"),
        ({"devices": "a", "order": "profile"}, "no list of names"),
        ({"devices": ["a"], "order": "explode"}, "kind"),
        ({"devices": ["a"], "order": "profile", "args": 3}, "args"),
    ],
)
def test_an_order_that_cannot_be_passed_on_is_refused_with_its_reason(args: dict[str, object], words: str) -> None:
    orders, told = passed_on(request(**args), {"a", "b"})
    assert (orders, told.ok) == ({}, False)
    assert words in told.reason


def test_a_manifest_says_the_protocol_it_speaks(workshop: Workshop) -> None:
    assert workshop.bundle("0.1.0").manifest.protocol == PROTOCOL
