"""Installs a verified bundle beside the version that runs, tries it, and switches. Standard library only.

Runs on the board, as root from install.sh or as the agent's own user for an announced update:

    python3 -m device_runtime.install bundle FOLDER     put the version into the spare slot and switch to it
    python3 -m device_runtime.install watch SECONDS     wait until it has shown that it works; else go back
    python3 -m device_runtime.install rollback | status
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from device_runtime.bundle import MANIFEST, BadBundle, Manifest, check_fit, here, plain_name, verify
from device_runtime.slots import BASE, Slots

CONFIG = Path("/etc/relief/device.toml")
PATIENCE = 900.0  # seconds that pip may take on a slow card
PROBE_PATIENCE = 180.0

Say = Callable[[str], None]

STARTER = """#!/bin/sh
# The version in this slot.
slot=$(dirname "$(dirname "$(readlink -f "$0")")")
exec "$slot/venv/bin/python" -I -c 'from tools.cli import main; main()' "$@"
"""


def install(folder: Path, slots: Slots, config: Path | None, say: Say = print) -> str:
    """Verify `folder`, install it into the spare slot and try it there; the running version is not touched.

    Returns the slot; `slots.switch` it afterwards. BadBundle with one line; then only the spare slot has changed.
    """
    manifest = verify(folder)
    slots.base.mkdir(parents=True, exist_ok=True)
    check_fit(manifest, here(slots.base))
    slot = slots.spare
    say(f"installing {manifest.runtime} ({manifest.target}) into slot {slot}")
    path = slots.clear(slot)
    _packages(folder, manifest, path, say)
    starter(path)
    shutil.copy(folder / "requirements.txt", path / "requirements.txt")
    say(f"slot {slot} answers: {probe(path, config)}")
    slots.complete(slot, (folder / MANIFEST).read_bytes())
    return slot


def starter(path: Path) -> None:
    """bin/relief of a slot, which finds its own interpreter wherever the slot is."""
    script = path / "bin" / "relief"
    script.parent.mkdir(exist_ok=True)
    script.write_text(STARTER)
    script.chmod(0o755)


def _packages(folder: Path, manifest: Manifest, path: Path, say: Say) -> None:
    """A virtual environment over the board's own packages, filled from the bundle alone."""
    venv = path / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(venv)], "the environment")
    # Asked of the new environment: this process may itself run from a slot that brought a torch of its own.
    ask = "import importlib.metadata as m; print(next((d.version for d in m.distributions(name='torch')), ''))"
    torch = _run([str(venv / "bin" / "python"), "-I", "-c", ask], "the board's Python").strip()
    wanted, constraints = requirements((folder / "requirements.txt").read_text(), torch)
    if torch:
        say(f"torch {torch} of the board stays")
    pinned = path / "constraints.txt"
    pinned.write_text(constraints)
    pip = next((folder / "wheels").glob("pip-*.whl"), None)
    if pip is None:
        raise BadBundle("wheels/: pip is missing, nothing can be installed without it")
    command = [str(venv / "bin" / "python"), f"{pip}/pip", "install", "--quiet", "--no-index", "--no-compile"]
    command += [
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--root-user-action=ignore",
        "--no-warn-script-location",
    ]
    command += ["--find-links", str(folder / "wheels"), "--constraint", str(pinned), wanted]
    _run(command, "its packages")


def requirements(text: str, torch: str) -> tuple[str, str]:
    """What to install and the constraints for it: every pin, with the board's torch in the place of any other."""
    lines = [line.split(" ")[0] for line in text.splitlines() if line and line[0].isalnum()]  # without hashes
    ours = next(line for line in lines if plain_name(re.split(r"[\[=]", line)[0]) == "relief-edge")
    pins = [line for line in lines if line is not ours]
    wanted = ours
    if torch:
        # The board's build may need other versions of what only torch needs; those are already there with it.
        pins = [line for line in pins if plain_name(line.split("==")[0]) != "torch"] + [f"torch=={torch}"]
        extras = [e for e in re.findall(r"\[(.*)\]", ours)[:1] if e]
        names = sorted({*(extras[0].split(",") if extras else []), "train"})
        wanted = re.sub(r"(\[.*\])?==", f"[{','.join(names)}]==", ours, count=1)
    return wanted, "\n".join(pins) + "\n"


def torch_in(folders: list[str]) -> str:
    """Version of the torch that lies in these folders, empty where there is none."""
    found = importlib.metadata.distributions(name="torch", path=folders)
    return next((one.version for one in found if one.version), "")


def probe(path: Path, config: Path | None) -> str:
    """Start the version in a slot far enough to know that it can run: its own words. BadBundle otherwise."""
    command = [str(path / "venv" / "bin" / "python"), "-I", "-m", "device_runtime.probe"]
    told = _run([*command, *([str(config)] if config else [])], "the new version", PROBE_PATIENCE)
    try:
        answer = json.loads(told.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise BadBundle(f"the new version does not answer as it should: {told.strip()[-200:] or 'nothing'}") from None
    return ", ".join(f"{key} {value}" for key, value in answer.items())


def _run(command: list[str], what: str, patience: float = PATIENCE) -> str:
    # From the root folder: the folder we stand in may hold modules of the same names.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, cwd="/", env=environment)
    except subprocess.TimeoutExpired:
        raise BadBundle(f"{what}: not done after {patience:g} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise BadBundle(f"{what}: {'; '.join(errors) or f'exit code {done.returncode}'}")
    return done.stdout


def watch(slots: Slots, seconds: float, say: Say = print) -> bool:
    """Wait until the version on trial has met the broker. After `seconds` without, go back. Whether it stays."""
    end = time.monotonic() + seconds
    new = slots.current
    while slots.trial is not None and slots.current == new and time.monotonic() < end:
        time.sleep(0.2)
    if slots.current == new and slots.trial is None:
        say("the new version runs and has met the broker")
        return True
    if slots.current == new:
        if slots.trial is not None and slots.trial.old == "-":
            say(f"not at the broker after {seconds:g} s; it is the first version here, so it stays and goes on trying")
            return False
        slots.roll_back(f"not at the broker within {seconds:g} s")
    say(f"rolled back: {slots.failed}")
    return False


def main(arguments: list[str] | None = None) -> int:
    """The command line; errors are one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="relief-install", description="Versions of the runtime on this board.")
    parser.add_argument("--base", type=Path, default=BASE)
    verbs = parser.add_subparsers(dest="verb", required=True)
    bundle = verbs.add_parser("bundle")
    bundle.add_argument("folder", type=Path)
    bundle.add_argument("--config", type=Path, default=CONFIG)
    verbs.add_parser("watch").add_argument("seconds", type=float)
    verbs.add_parser("rollback")
    verbs.add_parser("status")
    verbs.add_parser("verify").add_argument("folder", type=Path)
    asked = parser.parse_args(arguments)
    slots = Slots(asked.base)
    try:
        return _obey(asked, slots)
    except (BadBundle, OSError) as error:
        print(f"relief: {error}", file=sys.stderr)
        return 2


def _obey(asked: argparse.Namespace, slots: Slots) -> int:
    if asked.verb == "verify":
        manifest = verify(asked.folder)
        check_fit(manifest, here(slots.base))
        print(f"{len(manifest.files)} files verified: {manifest.runtime} for {manifest.target}")
    elif asked.verb == "bundle":
        slot = install(asked.folder, slots, asked.config if asked.config.is_file() else None)
        slots.switch(slot)
        print(f"switched to slot {slot}, on trial until it has met the broker")
    elif asked.verb == "watch":
        return 0 if watch(slots, asked.seconds) else 1
    elif asked.verb == "rollback":
        print(f"back to slot {slots.roll_back('by an operator')}")
    for name in ("a", "b"):
        manifest_ = slots.manifest(name)
        mark = "*" if slots.current == name else " "
        print(f"{mark} slot {name}: {manifest_.runtime if manifest_ else 'empty'}")
    if slots.trial:
        print(f"  on trial: slot {slots.trial.new}, {slots.trial.tries} starts")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
