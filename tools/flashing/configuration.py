"""A device's part of the fleet's configuration, as the file that lies on its board."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from device_runtime.config import Settings, settings

ETC = PurePosixPath("/etc/relief")
STATE = PurePosixPath("/var/lib/relief")
CREDENTIALS = ("username", "password")


def device_files(config: Path, device: str, *, credentials: bool) -> dict[str, bytes]:
    """Paths below /etc/relief and their contents. ValueError where a secret would be needed and may not be packed.

    Without `credentials` a board that needs a certificate gets the CA's only and makes its own key.
    """
    found = settings(config, device)
    broker = found.broker.of(device)
    if found.broker.identities is not None and not credentials:
        broker = broker.model_copy(update={"ca": _ca(found.broker.identities, device)})
    plain = _plain(found)
    files: dict[str, bytes] = {"name": f"{device}\n".encode()}
    if broker.password is not None and not credentials:
        raise ValueError(
            f"{config}: broker.password is a secret: say --include-credentials to pack it, or use certificates"
        )
    for key in ("identities", "ca", "cert", "key"):
        plain["broker"].pop(key, None)
    if broker.ca is not None:
        files["identity/ca.pem"] = _read(broker.ca)
        plain["broker"]["ca"] = str(ETC / "identity/ca.pem")
    if broker.cert is not None and broker.key is not None:
        plain["broker"] |= {key: str(ETC / f"identity/{key}.pem") for key in ("cert", "key")}
        if credentials:
            files |= {"identity/cert.pem": _read(broker.cert), "identity/key.pem": _read(broker.key)}
        else:
            files["wants-identity"] = b"This board makes its own key and a signing request.\n"
    plain["device"]["state"] = str(STATE)
    files["device.toml"] = toml(
        {"fleet": plain["fleet"], "broker": plain["broker"], "device": [plain["device"]]}
    ).encode()
    return files


def _plain(found: Settings) -> dict[str, Any]:
    return found.model_dump(mode="python", exclude_defaults=True) | {
        "broker": found.broker.model_dump(exclude_defaults=True),
        "device": found.device.model_dump(exclude_defaults=True),
    }


def _ca(identities: Path, device: str) -> Path:
    """The broker's CA: all identities have the same, and a device whose key is still to be made has no folder yet."""
    own = identities / device / "ca.pem"
    return own if own.exists() else min(identities.glob("*/ca.pem"), default=own)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


def toml(values: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Plain values as TOML: tables last, so that every key stays where it belongs."""
    lines, tables = [], []
    for key, value in values.items():
        name = (*path, key)
        if isinstance(value, dict):
            tables.append(f"\n[{'.'.join(name)}]\n{toml(value, name)}")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(one, dict) for one in value):
            tables += [f"\n[[{'.'.join(name)}]]\n{toml(one, name)}" for one in value]
        elif value is not None:
            lines.append(f"{key} = {_scalar(value)}\n")
    return "".join(lines + tables)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(value)  # inf and nan are TOML's words too
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_scalar(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_scalar(v)}" for k, v in value.items()) + "}"
    # JSON leaves DEL as it is, TOML does not take it.
    return json.dumps(str(getattr(value, "value", value)), ensure_ascii=False).replace("\x7f", "\\u007f")
