"""How the MQTT transport behaves when the broker, the network or paho do not."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator

import paho.mqtt.client
import pytest

from broker_config.launcher import Broker
from protocol import mqtt
from protocol.config import BrokerConfig
from protocol.errors import Congested
from protocol.mqtt import MqttTransport
from protocol.transport import Connected, Event, Lost, Received, Stopped, Will
from tests.parties import Party, eventually
from tests.scripted_broker import CONNECT, PUBLISH, SUBSCRIBE, Packet, ScriptedBroker, connack, disconnect


@pytest.fixture
def opened() -> Iterator[list[MqttTransport]]:
    """Transports that are closed afterwards, whatever happens."""
    transports: list[MqttTransport] = []
    yield transports
    for transport in transports:
        transport.close(clean=False)
        assert transport._supervisor is None or not transport._supervisor.is_alive()


def _config(port: int, **more: float) -> BrokerConfig:
    return BrokerConfig.model_validate({"port": port, "reconnect_min": 0.01, "reconnect_max": 0.05, **more})


def _party(opened: list[MqttTransport], port: int, will: Will | None = None, **more: float) -> Party:
    opened.append(MqttTransport(_config(port, **more), "d1"))
    return Party(opened[-1], will, queue.SimpleQueue())


def _accepting(packet: Packet, connection: int) -> bytes:
    return connack() if packet.kind == CONNECT else b""


# -- what the broker allows ----------------------------------------------------------------------------------------


def test_no_more_publishes_are_unanswered_than_the_broker_takes(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes:
        return connack(0, bytes([0x21, 0, 5])) if packet.kind == CONNECT else b""  # ReceiveMaximum 5, never a PUBACK

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        for n in range(20):
            party.transport.publish(f"t/{n}", b"x")
        assert eventually(lambda: len(broker.of(PUBLISH)) == 5)
        time.sleep(0.1)
        assert len(broker.of(PUBLISH)) == 5
        opened[0].close(clean=False)


def test_answers_let_the_rest_follow_in_order(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes:
        if packet.kind == CONNECT:
            return connack(0, bytes([0x21, 0, 2]))
        topic = 2 + int.from_bytes(packet.body[:2], "big")
        return bytes([0x40, 2]) + packet.body[topic : topic + 2] if packet.kind == PUBLISH else b""

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        for n in range(300):
            party.transport.publish("t", f"{n:03d}".encode())
        assert eventually(lambda: len(broker.of(PUBLISH)) == 300)
        assert [packet.body[-3:] for packet in broker.of(PUBLISH)] == [f"{n:03d}".encode() for n in range(300)]
        opened[0].close()


def test_the_limits_of_packet_and_quality_are_told_and_kept(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes:
        properties = bytes([0x24, 0]) + b"\x27" + (2000).to_bytes(4, "big")  # MaximumQoS 0, MaximumPacketSize 2000
        return connack(0, properties) if packet.kind == CONNECT else b""

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        assert party.next(Connected) == Connected(max_payload=2000, max_qos=0)
        party.transport.publish("t", b"x", qos=1)
        assert eventually(lambda: len(broker.of(PUBLISH)) == 1)
        assert broker.of(PUBLISH)[0].flags & 0b110 == 0
        opened[0].close()


def test_what_waits_is_bounded_and_the_sender_is_told(opened: list[MqttTransport]) -> None:
    with ScriptedBroker(_accepting) as broker:
        party = _party(opened, broker.port, queue_bytes=1 << 20, inflight=2)
        party.next(Connected)
        with pytest.raises(Congested, match="at most 1,048,576 bytes wait"):
            for n in range(20):
                party.transport.publish(f"t/{n}", bytes(100_000))
        assert n == 10
        assert opened[0].counts["Congested"] == 1
        opened[0].close(clean=False)


def test_subscriptions_go_in_packets_that_every_broker_takes(opened: list[MqttTransport]) -> None:
    with ScriptedBroker(_accepting) as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        party.transport.subscribe(*(f"t/{n}" for n in range(20)))
        assert eventually(lambda: len(broker.of(SUBSCRIBE)) == 3)
        opened[0].close(clean=False)


def test_it_starts_clean_and_the_session_lasts_as_long_as_the_will_waits(opened: list[MqttTransport]) -> None:
    with ScriptedBroker(_accepting) as broker:
        _party(opened, broker.port, Will("t/will", b"dead", delay=7)).next(Connected)
        connect = broker.of(CONNECT)[0].body
        assert connect[7] & 0b10, "clean start"
        assert b"\x11" + (7).to_bytes(4, "big") in connect, "session expiry interval"
        assert b"\x18" + (7).to_bytes(4, "big") in connect, "will delay interval"
        opened[0].close(clean=False)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "advice"), [(134, "broker.password"), (135, "ACL"), (133, "rename the device")])
def test_a_refusal_for_good_stops_and_says_what_to_do(opened: list[MqttTransport], code: int, advice: str) -> None:
    with ScriptedBroker(lambda packet, connection: connack(code)) as broker:
        stopped = _party(opened, broker.port).next(Stopped)
        assert stopped.code == code
        assert advice in stopped.reason
        time.sleep(0.1)
        assert broker.connections == 1


@pytest.mark.parametrize(
    ("code", "advice"), [(142, "identity of its own"), (149, "max_packet_size"), (155, "QoS 1"), (135, "ACL")]
)
def test_being_sent_away_for_good_stops(opened: list[MqttTransport], code: int, advice: str) -> None:
    with ScriptedBroker(lambda packet, connection: connack() + disconnect(code)) as broker:
        party = _party(opened, broker.port)
        stopped = party.until(Stopped)
        assert stopped.code == code
        assert advice in stopped.reason
        party.transport.publish("t", b"too late")
        assert opened[0].counts["dropped while down"] == 1
        assert broker.connections == 1


def test_a_busy_broker_is_asked_again(opened: list[MqttTransport]) -> None:
    with ScriptedBroker(lambda packet, connection: connack(136 if connection < 3 else 0)) as broker:
        party = _party(opened, broker.port)
        assert "reason 136" in party.next(Lost).reason
        party.next(Lost)
        party.next(Connected)
        opened[0].close(clean=False)


def test_six_short_connections_open_the_breaker(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes | None:
        return connack() if packet.kind == CONNECT else None

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        for _ in range(6):
            party.next(Connected)
            party.transport.publish("t", b"the packet that hurts")
            last = party.events.get(timeout=10)
        assert isinstance(last, Stopped)
        assert "6 connections in a row" in last.reason
        time.sleep(0.2)
        assert broker.connections == 6


def test_a_broker_without_retained_messages_is_refused(opened: list[MqttTransport]) -> None:
    with ScriptedBroker(lambda packet, connection: connack(0, bytes([0x25, 0]))) as broker:
        assert "retained" in _party(opened, broker.port).next(Stopped).reason


def test_a_denied_subscription_stops_and_names_the_filter(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes:
        if packet.kind == CONNECT:
            return connack()
        return bytes([0x90, 5]) + packet.body[:2] + bytes([0, 1, 135]) if packet.kind == SUBSCRIBE else b""

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        party.transport.subscribe("mine", "theirs")
        assert "subscribe to theirs" in party.next(Stopped).reason


def test_a_broker_that_keeps_its_own_numbers_to_itself_is_no_reason_to_stop(opened: list[MqttTransport]) -> None:
    def answer(packet: Packet, connection: int) -> bytes:
        if packet.kind == CONNECT:
            return connack()
        return bytes([0x90, 5]) + packet.body[:2] + bytes([0, 1, 135]) if packet.kind == SUBSCRIBE else b""

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        party.transport.subscribe("mine", "$SYS/broker/uptime")
        assert eventually(lambda: len(broker.of(SUBSCRIBE)) == 1)
        assert party.silent(0.2)
        opened[0].close(clean=False)


def test_a_broker_that_never_answers_is_left(opened: list[MqttTransport], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNACK_WAIT", 0.2)
    with ScriptedBroker(lambda packet, connection: b"") as broker:
        assert "did not answer" in _party(opened, broker.port).next(Lost).reason
        opened[0].close(clean=False)


# -- MQTT 3.1.1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "told"),
    [(connack(132), mqtt.OLDER), (bytes([0x20, 2, 0, 1]), mqtt.OLDER), (None, mqtt.OLDER_HUNG_UP)],
    ids=["as MQTT 5", "as MQTT 3.1.1", "by hanging up"],
)
def test_a_broker_of_3_1_1_only_is_spoken_to_in_3_1_1_and_one_line_says_what_is_missing(
    opened: list[MqttTransport], caplog: pytest.LogCaptureFixture, refusal: bytes | None, told: str
) -> None:
    def answer(packet: Packet, connection: int) -> bytes | None:
        if packet.kind != CONNECT:
            return b""
        return refusal if packet.body[6] == 5 else bytes([0x20, 2, 0, 0])

    with ScriptedBroker(answer) as broker:
        party = _party(opened, broker.port, Will("t/will", b"dead", delay=7))
        party.next(Connected)
        party.transport.publish("t", b"x", expiry=5)
        assert eventually(lambda: len(broker.of(PUBLISH)) == 1)
        assert broker.of(CONNECT)[-1].body[6] == 4
        assert broker.of(CONNECT)[-1].body[7] & 0b10, "clean session"
        assert [record.getMessage() for record in caplog.records] == [f"broker 127.0.0.1:{broker.port} {told}"]
        opened[0].close(clean=False)


# -- the network and paho ------------------------------------------------------------------------------------------


def test_after_a_crash_of_the_broker_it_is_back_by_itself(opened: list[MqttTransport]) -> None:
    with Broker() as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        broker.kill()
        assert "was lost" in party.next(Lost).reason
        assert "cannot be reached" in party.next(Lost).reason
        broker.restart()
        party.until(Connected)


def test_what_is_published_while_down_is_never_sent(opened: list[MqttTransport], fleet: str) -> None:
    with Broker() as broker:
        party = _party(opened, broker.port)
        party.next(Connected)
        broker.kill()
        party.next(Lost)
        party.transport.publish(f"{fleet}/x", b"ghost", qos=1)
        assert opened[0].counts["dropped while down"] == 1
        broker.restart()
        party.until(Connected)
        party.listen(f"{fleet}/x")
        party.transport.publish(f"{fleet}/x", b"alive")
        assert party.payloads(1) == [b"alive"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_network_thread_is_noticed_and_replaced(
    opened: list[MqttTransport], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = _party(opened, broker.port)
    party.next(Connected)
    real, raised = paho.mqtt.client.Client.loop_misc, threading.Event()

    def dying(client: paho.mqtt.client.Client) -> object:
        if not raised.is_set():
            raised.set()
            raise SystemExit  # ends the thread without a traceback
        return real(client)

    monkeypatch.setattr(paho.mqtt.client.Client, "loop_misc", dying)
    assert party.next(Lost).reason == "the network thread died"
    party.next(Connected)
    assert opened[0].counts["network thread died"] == 1


def test_a_break_shorter_than_the_wills_delay_buries_nobody(
    opened: list[MqttTransport], broker: Broker, fleet: str
) -> None:
    opened.append(MqttTransport(_config(broker.port), f"{fleet}-watch"))
    watch = Party(opened[-1])
    watch.listen(f"{fleet}/#")
    opened.append(MqttTransport(_config(broker.port), f"{fleet}-d"))
    device = Party(opened[-1], Will(f"{fleet}/will", b"dead", delay=1))
    window = opened[-1]._window
    assert window is not None
    sock = window.client.socket()
    assert isinstance(sock, socket.socket)
    sock.shutdown(socket.SHUT_RDWR)
    device.next(Lost)
    device.next(Connected)
    assert watch.silent(1.8)


def test_an_inbox_that_raises_harms_nobody(opened: list[MqttTransport], broker: Broker, fleet: str) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def inbox(event: Event) -> None:
        events.put(event)
        if isinstance(event, Received):
            raise KeyError("a bug")

    opened.append(MqttTransport(_config(broker.port), f"{fleet}-clumsy"))
    opened[0].open(inbox)
    assert isinstance(events.get(timeout=5), Connected)
    opened[0].subscribe(f"{fleet}/x")
    for _ in range(2):
        opened[0].publish(f"{fleet}/x", b"1")
        assert isinstance(events.get(timeout=5), Received)
    assert eventually(lambda: opened[0].counts["inbox raised"] == 2)


def test_small_messages_do_not_wait_for_the_network_to_fill(opened: list[MqttTransport], broker: Broker) -> None:
    party = _party(opened, broker.port)
    party.next(Connected)
    window = opened[0]._window
    assert window is not None
    plain = window.client.socket()
    assert isinstance(plain, socket.socket)
    assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_reconnects_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = [MqttTransport(BrokerConfig(), f"d{n}")._first_delay() for n in range(300)]
    assert min(delays) >= 1.0
    assert max(delays) <= 8.0
    assert max(delays) - min(delays) > 6.0


def test_closing_is_quick_whatever_the_connection_does(opened: list[MqttTransport]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        for port in (deaf.getsockname()[1], 1):  # accepts and is silent; refuses
            party = _party(opened, port, reconnect_min=30, reconnect_max=60)
            if port == 1:
                party.next(Lost)
            began = time.monotonic()
            party.transport.close()
            assert time.monotonic() - began < 1


def test_many_threads_may_publish_at_once(opened: list[MqttTransport], broker: Broker, fleet: str) -> None:
    party = _party(opened, broker.port)
    party.next(Connected)
    party.listen(f"{fleet}/#")

    def publish(name: str) -> None:
        for n in range(200):
            party.transport.publish(f"{fleet}/{name}", f"{n}".encode(), qos=n % 2)

    threads = [threading.Thread(target=publish, args=(f"{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    arrived: dict[str, list[int]] = {}
    for _ in range(1600):
        event = party.next(Received)
        arrived.setdefault(event.topic, []).append(int(event.payload))
    assert all(numbers == list(range(200)) for numbers in arrived.values())
    window = opened[0]._window
    assert window is not None
    assert eventually(lambda: window._taken == window._released)
