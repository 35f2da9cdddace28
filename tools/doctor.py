"""`relief doctor`: versions, configuration without secrets and recent logs in one file, for a report of a fault."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.shown import Json, print_json

PACKAGES = (
    "relief-edge", "torch", "numpy", "paho-mqtt", "pydantic", "msgpack", "nicegui", "onnxruntime", "prometheus-client",
    "structlog", "jetson-stats", "bleak", "pyserial",
)  # fmt: skip
LOG_BYTES = 200_000  # of each log's end
LOGS = 40
_SECRET = re.compile(r"(?i)(pass(word|wd)?|secret|token|api_?key|credential)")
_WORDS = r"(?:pass(?:word|wd)?|secret|token|api_?key|credential)"
_LINE = re.compile(rf"(?im)^(\s*[\"']?[\w.-]{{0,60}}{_WORDS}[\w.-]{{0,60}}[\"']?\s*[=:]\s*).*$")
_ADDRESS = re.compile(r"(\b\w{1,20}://)[^/\s:@]{1,100}:[^/\s@]{1,200}@")
_PEM = re.compile(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----", re.DOTALL)
_INLINE = re.compile(
    rf"(?i)([\w.-]{{0,60}}{_WORDS}[\w.-]{{0,60}}[\"']?\s*[=:]\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&}}\]]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{4,}")
HIDDEN = "(left out)"


def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.", exists=True)] = None,
    run: Annotated[Path | None, typer.Option(help="Folder whose logs and metrics to add.", exists=True)] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("relief-doctor.zip"),
    as_json: Json = False,
) -> None:
    """Collect what a report of a fault needs into one file: versions, configuration without secrets, recent logs.

    Example: relief doctor --config fleet.toml --run runs/demo-20260301-120000
    """
    found = versions()
    if as_json:
        print_json(found)
        return
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("versions.json", json.dumps(found, indent=1))
        if config:
            bundle.writestr("configuration.toml", clean(config.read_text(encoding="utf-8", errors="replace")))
        for file in _logs(run) if run else []:
            bundle.writestr(f"run/{file.relative_to(run or file)}", clean(_end(file)))
        names = bundle.namelist()
    for key, value in found["packages"].items():
        typer.echo(f"{key:20} {value}")
    typer.echo(f"{len(names)} parts in {out}: look through it before you send it")


def versions() -> dict[str, Any]:
    """Machine, interpreter, packages and programs; no host name, user or address."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": packages,
        "mosquitto": _said("mosquitto", "-h"),
        "environment": {
            k: HIDDEN if _SECRET.search(k) else clean(v) for k, v in os.environ.items() if k.startswith("RELIEF_")
        },
    }


def clean(text: str) -> str:
    """`text` without passwords, keys and certificates."""
    text = _PEM.sub(HIDDEN, text)
    text = _ADDRESS.sub(rf"\1{HIDDEN}@", text)
    text = _LINE.sub(rf'\1"{HIDDEN}"', text)
    text = _INLINE.sub(rf'\1"{HIDDEN}"', text)
    return _BEARER.sub(rf"\1 {HIDDEN}", text)


def _logs(folder: Path) -> list[Path]:
    wanted = ("*.log", "metrics.jsonl", "*.toml", "manifest.json")
    files = {f for pattern in wanted for f in folder.rglob(pattern) if f.is_file() and not f.is_symlink()}
    # The journal's files are tensors, whatever they are called.
    plain = [f for f in files if "journal" not in f.relative_to(folder).parts]
    return sorted(plain, key=lambda f: -f.stat().st_mtime)[:LOGS]


def _end(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - LOG_BYTES))
        return stream.read().decode("utf-8", errors="replace")


def _said(program: str, *arguments: str) -> str:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        return "not installed"
    try:
        told = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    return next(iter((told.stdout + told.stderr).splitlines()), "says nothing")
