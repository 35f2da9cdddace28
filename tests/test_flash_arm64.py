"""The quick part of `make test-arm64`: into an arm64 root that nothing was run in, and the runtime starts there."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from device_runtime.bundle import BadBundle
from device_runtime.slots import Slots
from tests.arm64 import root
from tools.cli import VERBS, build
from tools.flash import make

NEEDED = ("debootstrap", "qemu-aarch64-static", "unshare", "dpkg-deb")
PROBE = ("/opt/relief/current/venv/bin/python", "-I", "-m", "device_runtime.probe", "/etc/relief/device.toml")


@pytest.mark.timeout(900)
def test_a_bundle_goes_into_a_foreign_root_and_its_runtime_starts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := root.missing(NEEDED):
        pytest.skip(reason)
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    config = tmp_path / "fleet.toml"
    config.write_text('fleet = "f"\n[[device]]\nid = "wrist"\npower = []\n[device.source]\nspeed = inf\n')
    try:
        place = root.unconfigured(tmp_path / "root")
        bundle = make("debian12-arm64", "wrist", config, tmp_path / "bundles")
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no arm64 root can be made here: {error}")
    except BadBundle as error:
        pytest.skip(f"wheels cannot be fetched here: {error}")
    assert bundle.size < 60e6

    before = _spent()
    arguments = ["flash", "rootfs", str(place), "--device", "wrist", "-c", str(config), "--bundle", str(bundle.path)]
    told = CliRunner().invoke(build(VERBS), arguments)
    assert told.exit_code == 0, told.output
    assert "enabled: relief-firstboot.service, relief-device.service" in told.output
    spent = _spent() - before
    print(f"installed with {spent:.1f} s of CPU; bundle {bundle.size / 1e6:.1f} MB")
    assert spent < 10.0, f"installing took {spent:.1f} s of CPU"

    assert Slots(place / "opt/relief").current == "a"
    code, said = root.inside(place, *PROBE)
    assert code == 0, said
    answer = json.loads(said.strip().splitlines()[-1])
    assert answer["device"] == "wrist"
    assert answer["python"].startswith("3.11.")
    assert "onnxruntime" in answer
    code, said = root.inside(place, "/opt/relief/current/bin/relief", "device", "run", "--help")
    assert code == 0, said


def _spent() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
