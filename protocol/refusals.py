"""What the broker's refusals mean for us: which ones end a connection for good, and what to do about each.

Reason codes are MQTT 5's (section 2.4); a broker of 3.1.1 is translated to them by paho.
"""

from __future__ import annotations

WRONG_VERSION = 132
NOT_AUTHORISED = 135
TAKEN_OVER = 142

_REMEDY = {
    129: "the broker could not read our packet; it is no MQTT 5 broker, or something between rewrites the traffic",
    130: "the broker found an error of protocol; report it with the broker's log",
    132: "the broker speaks neither MQTT 5 nor 3.1.1; use another",
    133: "the broker does not take {identity} as a client id; rename the device",
    134: "the broker does not know this user or password; correct broker.username and broker.password",
    135: "{identity} is not allowed to {act}; check its certificate and the broker's ACL (`relief broker check`)",
    138: "{identity} is banned at the broker; have it released there",
    140: "the broker wants another way of authentication; set broker.cert and broker.key, or username and password",
    142: "another connection took the identity {identity}; give every connection an identity of its own",
    144: "the broker refuses the topic of the will; check its ACL",
    149: "a packet was above the broker's limit; raise max_packet_size there",
    154: "the broker keeps no retained messages; the protocol needs them, allow them there",
    155: "the broker does not take this quality of service; allow QoS 1 there",
}


def ends_for_good(code: int) -> bool:
    """Whether connecting again could not help: something must be changed first."""
    return code in _REMEDY


def remedy(code: int, identity: str, act: str = "connect") -> str:
    """What `code` means for `identity` that tried to `act`, and what to do."""
    text = _REMEDY.get(code, f"refused with reason {code}")
    return f"{text.format(identity=identity, act=act)} (reason {code})"
