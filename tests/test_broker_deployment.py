"""Deployment files: the tools that will read them accept them, and Mosquitto starts from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config import deployment
from broker_config.directory import Directory
from protocol.config import BrokerConfig, Party, load
from tools.broker import app


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """DIR/deploy of a fresh broker with 200 devices."""
    command = ["init", str(tmp_path / "site"), "--fleet", "ward", "--devices", "200", "--host", "broker.example.org"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return tmp_path / "site" / "deploy"


def _needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")


@pytest.mark.parametrize("unit", ["relief-broker.service", "relief-coordinator.service"])
def test_systemd_accepts_the_units_and_finds_them_closed(deploy: Path, unit: str) -> None:
    _needs("systemd-analyze")
    if not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("systemd looks for the programs that the units start, and Mosquitto is not installed")
    verified = subprocess.run(["systemd-analyze", "verify", deploy / unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", deploy / unit]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Unknown" in told.stderr or "unrecognized" in told.stderr:
        pytest.skip("this systemd cannot judge a unit that is not installed")
    exposure = re.search(r"exposure level for .*: ([\d.]+)", told.stdout)
    assert exposure is not None, told.stdout + told.stderr
    assert float(exposure[1]) < 2.0


def test_systemd_takes_the_limits_of_the_drop_in(deploy: Path) -> None:
    _needs("systemd-analyze")
    text = (deploy / "relief-broker.service.d" / "limits.conf").read_text()
    assert "LimitNOFILE=2048\n" in text
    unit = deploy / "relief-broker.service"
    unit.write_text(
        unit.read_text().replace("[Service]\n", text.partition("[Service]\n")[1] + text.partition("[Service]\n")[2], 1)
    )
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "limits" not in verified.stderr
    assert "Unknown" not in verified.stderr


def test_compose_accepts_the_file(deploy: Path) -> None:
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    compose = ["docker", "compose"] if plugin == 0 else ["docker-compose"]
    _needs(compose[0])
    told = subprocess.run(
        [*compose, "-f", deploy / "compose.yaml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")


def test_logrotate_accepts_the_file(deploy: Path) -> None:
    _needs("logrotate")
    file = deploy / "logrotate" / "relief-broker"
    # As ourselves: the broker's user may not look into a test's folder.
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.strip().startswith("su ")))
    told = subprocess.run(["logrotate", "-d", file], capture_output=True, text=True, check=False)
    assert told.returncode == 0
    assert "error" not in told.stderr


def test_the_configuration_reaches_every_party(deploy: Path) -> None:
    class File(Party):
        fleet: str
        broker: BrokerConfig

    read = load(deploy / "relief.toml", File)
    assert read.broker.host == "broker.example.org"
    own = read.broker.of("d001")
    assert own.cert == deploy / "identities/ward/d001/cert.pem"
    assert own.identities is None


def test_no_placeholder_is_left_in_any_file(deploy: Path) -> None:
    files = deployment.write_all(Directory.open(deploy.parent))
    assert {path.relative_to(deploy).as_posix() for path in files} == set(deployment.TARGETS.values())
    for path in files:
        assert not re.search(r"\$[a-z_{]", path.read_text()), path


def _add(site: Path, *more: str) -> str:
    told = CliRunner().invoke(app, ["add", str(site), *more])
    assert told.exit_code == 0, told.output
    return told.output


def test_limits_grow_with_the_fleet_and_the_operator_is_told_what_to_do(deploy: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("".join(f"x{n}\n" for n in range(300)))
    told = _add(deploy.parent, "--fleet", "ward", "--devices", str(tmp_path / "more"))
    line = next(line for line in told.splitlines() if "LimitNOFILE" in line)
    assert "LimitNOFILE=3072 (was 2048), MemoryMax=" in line
    assert f"copy {deploy}/relief-broker.service.d to /etc/systemd/system" in line
    assert "systemctl restart relief-broker" in line
    text = (deploy / "relief-broker.service.d" / "limits.conf").read_text()
    assert "LimitNOFILE=3072\n" in text
    memory = int(re.findall(r"^MemoryMax=(\d+)$", text, re.MULTILINE)[0])
    assert memory >= 2 * Directory.open(deploy.parent).sizes().bytes
    assert f"mem_limit: {memory}\n    ulimits: {{nofile: 3072}}\n" in (deploy / "compose.yaml").read_text()


def test_one_more_device_asks_for_no_restart_and_leaves_the_files_alone(deploy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in deploy.rglob("*") if path.is_file()}
    assert "restart" not in _add(deploy.parent, "--fleet", "ward", "--device", "bed-7")
    assert {path: path.stat().st_mtime_ns for path in deploy.rglob("*") if path.is_file()} == before


def test_where_a_fleet_shrinks_the_limits_follow_without_a_word(deploy: Path) -> None:
    limits = deploy / "relief-broker.service.d" / "limits.conf"
    limits.write_text(limits.read_text().replace("LimitNOFILE=2048", "LimitNOFILE=9216"))
    told = CliRunner().invoke(app, ["revoke", str(deploy.parent), "d001"])
    assert "LimitNOFILE" not in told.output
    assert "LimitNOFILE=2048\n" in limits.read_text()


def test_a_growing_fleet_leaves_what_people_wrote_and_which_fleet_it_is_for(deploy: Path, tmp_path: Path) -> None:
    own = deploy / "relief.toml"
    own.write_text(own.read_text() + '[coordinator]\nfolder = "ours"\n')
    (tmp_path / "more").write_text("".join(f"x{n}\n" for n in range(300)))
    _add(deploy.parent, "--fleet", "annexe", "--devices", str(tmp_path / "more"))
    assert own.read_text().endswith('folder = "ours"\n')
    assert "identities/ward:/etc/relief/identities/ward:ro" in (deploy / "compose.yaml").read_text()


def test_every_file_that_depends_on_the_fleets_size_is_among_those_that_are_written_again() -> None:
    depend = {t.name for t in deployment.TEMPLATES.iterdir() if re.search(r"\$(files|memory|said)\b", t.read_text())}
    assert depend == set(deployment.SIZED)
