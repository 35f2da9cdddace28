"""TLS towards the broker: the context made from the configuration, and its failures in words."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Any

from protocol.config import BrokerConfig

_ALERTS = {
    "certificate_expired": "has expired",
    "certificate expired": "has expired",
    "certificate_revoked": "was revoked",
    "certificate revoked": "was revoked",
    "unknown_ca": "is of another CA than the broker's",
    "unknown ca": "is of another CA than the broker's",
    "bad_certificate": "was refused",
    "bad certificate": "was refused",
    "decrypt_error": "does not belong to its CA",
    "certificate_required": "is missing",
    "certificate required": "is missing",
    "handshake failure": "is missing or was refused",
    "handshake_failure": "is missing or was refused",
}


class _ClosedOnFailure(ssl.SSLSocket):
    """paho forgets a socket whose handshake fails."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def client_context(config: BrokerConfig) -> ssl.SSLContext | None:
    """TLS 1.2 at least, the broker verified; None where the configuration names no CA. OSError for unusable files."""
    if config.ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _ClosedOnFailure
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(config.ca)
    if config.cert is not None and config.key is not None:
        context.load_cert_chain(config.cert, config.key)
    return context


def unusable(config: BrokerConfig, error: OSError) -> str:
    """Which of the configured files stops us, and why."""
    for key, path in (("ca", config.ca), ("cert", config.cert), ("key", config.key)):
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as denied:
                todo = "" if path.parent.is_dir() else "; `relief broker add` makes what an identity needs"
                return f"broker.{key} = {path} cannot be read: {denied.strerror}{todo}"
    return f"broker.cert and broker.key ({config.cert}, {config.key}) do not fit together: {error}"


def explain(config: BrokerConfig, error: str) -> tuple[str, bool]:
    """A failed handshake in words (which certificate, whose, since when, what to run) and whether it is our own side
    that must change. Empty if the error was something else."""
    text = error.lower()
    if "certificate_verify_failed" in text or "certificate verify failed" in text:
        cause = error.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or error
        told = (
            f"the certificate of the broker at {config.where} was not accepted: {cause}; "
            f"it must be signed by the CA in {config.ca} for the name {config.host} and be in date: "
            "run `relief broker renew` there, or correct broker.ca or broker.host"
        )
        return told, False
    for alert, what in _ALERTS.items():
        if alert in text:
            when = _since(config.cert)
            return f"{_ours(config)} {what}{when}: run `relief broker renew` or `rotate` for this identity", True
    return "", False


def suspect(config: BrokerConfig) -> tuple[str, bool]:
    """What to say where the broker hung up before its CONNACK: its alert may be lost with the connection. And whether
    our own certificate is to blame for sure. Empty without one."""
    if config.cert is None:
        return "", False
    until = decoded(config.cert).get("notAfter")
    if until is not None and ssl.cert_time_to_seconds(until) < time.time():
        return explain(config, "certificate_expired")
    return f"the broker at {config.where} hung up before it answered; it may not accept {_ours(config)}", False


def _ours(config: BrokerConfig) -> str:
    if config.cert is None:
        return "our certificate (broker.cert is not set)"
    return f"our certificate {config.cert}{_whose(config.cert)}"


def _whose(path: Path) -> str:
    subject = [value for part in decoded(path).get("subject", ()) for key, value in part if key == "commonName"]
    return f" of {subject[0]}" if subject else ""


def _since(path: Path | None) -> str:
    until = decoded(path).get("notAfter") if path else None
    if until is None:
        return ""
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ssl.cert_time_to_seconds(until)))
    return f" since {day}" if ssl.cert_time_to_seconds(until) < time.time() else f" (valid until {day})"


def decoded(path: Path) -> dict[str, Any]:
    """Subject, issuer and dates of a PEM certificate; empty if it cannot be read."""
    # The only decoder in the standard library that takes a file; devices do without the `cryptography` package.
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    try:
        return dict(decode(str(path))) if decode else {}
    except (OSError, ssl.SSLError):
        return {}
