"""The page in a real browser: looks, keyboard, contrast, rights; and a real fleet that it shows and steers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_config.launcher import Broker
from protocol.config import BrokerConfig
from protocol.mqtt import MqttTransport
from tests.browser import Visitor, chromium, screenshot, served
from tests.synthetic_fleet import SyntheticCoordinator, SyntheticFleet
from tests.test_system_mosquitto import relief

pytestmark = pytest.mark.timeout(180)
PICTURES = Path(os.environ["RELIEF_SCREENSHOTS"]) if "RELIEF_SCREENSHOTS" in os.environ else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def coordinator(broker: Broker) -> Iterator[SyntheticCoordinator]:
    made = SyntheticCoordinator("shown", MqttTransport(BrokerConfig(port=broker.port), "coordinator-shown"), 9)
    for _ in range(8):
        made.fleet.open()
        made.fleet.finish()
    made.fleet.open()
    made.say()
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(broker: Broker, coordinator: SyntheticCoordinator) -> Iterator[str]:
    with served("shown", broker.port, "--control") as address:
        yield address


def visit(browser: Any, url: str, path: str = "", **context: Any) -> Visitor:
    visitor = Visitor(browser, url, **context)
    visitor.open(path)
    return visitor


def picture(visitor: Visitor, name: str, coordinator: SyntheticCoordinator | None = None) -> None:
    if PICTURES:
        if coordinator:
            coordinator.say()  # else its silence between two tests would be the picture's first alarm
        visitor.page.wait_for_timeout(1000)
        screenshot(visitor.page, PICTURES, name)


def clean(visitor: Visitor) -> None:
    assert visitor.complaints == []
    assert visitor.foreign == [], "everything the page needs comes with it"
    visitor.close()


def test_it_shows_the_fleet_without_asking_any_other_host(
    browser: Any, url: str, coordinator: SyntheticCoordinator
) -> None:
    visitor = visit(browser, url)
    visitor.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 9")
    assert "9 / 9" in visitor.text("#tiles")
    visitor.until("[...document.querySelectorAll('.picture')].filter(p => p.querySelector('canvas')).length === 6")
    picture(visitor, "dashboard-light.png", coordinator)
    clean(visitor)


def test_what_happens_appears_without_reloading(browser: Any, url: str, coordinator: SyntheticCoordinator) -> None:
    visitor = visit(browser, url)
    now = coordinator.fleet.round
    coordinator.fleet.finish()
    coordinator.fleet.devices["band-1"]["state"] = "offline"
    coordinator.say()
    visitor.until(f"document.querySelector('#headline').textContent.includes('round {now + 1} ')")
    visitor.until("document.querySelector('#tiles').textContent.includes('8 / 9')")
    visitor.until("document.querySelector('#alarms').textContent.includes('devices offline: band-1')")
    coordinator.fleet.devices["band-1"]["state"] = "ready"
    coordinator.say()
    visitor.until("document.querySelector('#alarms').textContent === ''")
    coordinator.fleet.open()
    coordinator.say()
    clean(visitor)


def test_pause_asks_once_more_and_reaches_the_coordinator(
    browser: Any, url: str, coordinator: SyntheticCoordinator
) -> None:
    visitor = visit(browser, url)
    before = len(coordinator.asked)
    visitor.page.get_by_role("button", name="Pause").click()
    visitor.page.get_by_role("button", name="Cancel").click()
    visitor.page.get_by_role("button", name="Cancel").wait_for(state="detached")
    visitor.page.get_by_role("button", name="Pause").click()
    visitor.page.get_by_role("button", name="Yes, pause").click()
    visitor.until("document.querySelector('#headline').textContent.includes('pause')")
    visitor.page.get_by_role("button", name="Resume").click()
    visitor.page.get_by_role("button", name="Yes, resume").click()
    visitor.until("!document.querySelector('#headline').textContent.includes('pause')")
    assert [r.kind for r in coordinator.asked[before:]] == ["pause", "resume"]
    clean(visitor)


def test_everything_is_reached_by_keyboard(browser: Any, url: str, coordinator: SyntheticCoordinator) -> None:
    visitor = visit(browser, url)
    before = len(coordinator.asked)
    page = visitor.page
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText")
        names.append(name.strip().split("\n")[0])
        if name.strip() == "Pause":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
            page.keyboard.press("Enter")
            page.get_by_role("button", name="Cancel").wait_for()
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Cancel").wait_for(state="detached")
    assert {"Pause", "Resume", "Dark or light", "device"} <= set(names), names
    assert coordinator.asked[before:] == []
    page.locator(".ag-pinned-left-cols-container [row-index='0'] [col-id='id']").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/device/band-1")
    clean(visitor)


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "device/hub-1"])
def test_contrast_and_names_hold_to_wcag_aa(
    browser: Any, url: str, coordinator: SyntheticCoordinator, look: str, path: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    visitor = visit(browser, url, path, color_scheme=look)
    visitor.until(f"document.body.classList.contains('body--dark') === {json.dumps(look == 'dark')}")
    visitor.page.wait_for_timeout(500)
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.run(visitor.page, options=rules).response["violations"]
    told = [f"{v['id']}: {n['html'][:200]} {n.get('failureSummary', '')}" for v in found for n in v["nodes"]]
    assert told == []
    picture(visitor, f"dashboard-{look}{'-device' * bool(path)}.png", coordinator)
    clean(visitor)


def test_the_look_is_remembered(browser: Any, url: str) -> None:
    visitor = visit(browser, url, color_scheme="light")
    visitor.page.get_by_role("button", name="Dark or light").click()
    visitor.until("localStorage.getItem('relief-look') === 'dark'")
    visitor.open()
    visitor.until("document.body.classList.contains('body--dark')")
    clean(visitor)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, url: str, coordinator: SyntheticCoordinator) -> None:
    visitor = visit(browser, url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visitor.until("document.querySelectorAll('.ag-row').length > 0")
    visitor.until("!document.querySelector('.ag-header-cell[col-id=\"version\"]')")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(visitor, "dashboard-phone.png", coordinator)
    clean(visitor)


def test_a_device_has_a_page_of_its_own_with_its_telemetry(
    browser: Any, url: str, coordinator: SyntheticCoordinator
) -> None:
    visitor = visit(browser, url, "device/hub-1")
    coordinator.telemetry("hub-1", time.time(), watts=7.31, power_source="jtop", celsius={"cpu": 54.0}, counts={"x": 2})
    visitor.until("document.querySelector('#facts').textContent.includes('7.3 W (jtop)')")
    visitor.page.get_by_role("button", name="Quarantine").click()
    visitor.page.get_by_role("button", name="Yes, quarantine").click()
    visitor.until("document.querySelector('#facts').textContent.includes('quarantined')")
    visitor.page.get_by_role("button", name="Release").click()
    visitor.page.get_by_role("button", name="Yes, release").click()
    visitor.until("!document.querySelector('#facts').textContent.includes('quarantined')")
    visitor.page.get_by_role("button", name="Adopt").click()
    visitor.page.get_by_role("button", name="Yes, order").click()
    visitor.until("document.querySelector('#facts').textContent.includes('adopt: done versions 3')")
    visitor.page.get_by_label("as class").fill("4")
    visitor.page.get_by_role("button", name="Send label").click()
    visitor.page.get_by_role("button", name="Cancel").click()
    visitor.page.get_by_role("button", name="Cancel").wait_for(state="detached")
    visitor.page.get_by_role("button", name="Send label").click()
    visitor.page.get_by_role("button", name="Yes, label").click()
    visitor.until("document.body.textContent.includes('label 4 for 60 s was sent to hub-1')")
    ((device, label),) = coordinator.labels
    assert (device, label.label, round(label.end - label.start)) == ("hub-1", 4, 60)
    coordinator.fleet.open()
    coordinator.say()
    clean(visitor)


def test_without_control_there_is_no_button_that_steers(
    browser: Any, broker: Broker, coordinator: SyntheticCoordinator
) -> None:
    with served("shown", broker.port, "--operator", "guest") as address:
        visitor = visit(browser, address)
        assert visitor.page.get_by_role("button", name="Pause").count() == 0
        assert "read only" in visitor.text("header")
        visitor.open("device/hub-1")
        assert visitor.page.get_by_role("button", name="Quarantine").count() == 0
        clean(visitor)


def test_outside_loopback_a_password_is_needed_and_opens_the_page(
    browser: Any, broker: Broker, coordinator: SyntheticCoordinator
) -> None:
    refused = relief("dashboard", "--host", "0.0.0.0", "--port", "0", "--broker-port", str(broker.port))
    assert refused.wait(30) == 2
    env = {**os.environ, "RELIEF_DASHBOARD_PASSWORD": "a good one"}
    with served("shown", broker.port, "--host", "0.0.0.0", "--operator", "far", env=env) as address:
        visitor = Visitor(browser, address.replace("0.0.0.0", "127.0.0.1"))
        visitor.page.goto(visitor.url)
        visitor.page.get_by_label("Password").fill("a good one")
        visitor.page.get_by_role("button", name="Log in").click()
        visitor.until("document.querySelector('#headline')?.textContent.includes('round')")
        assert [c for c in visitor.complaints if "401" not in c] == []
        visitor.close()


@pytest.fixture
def real(broker: Broker, fleet: str, tmp_path: Path) -> Iterator[tuple[Path, dict[str, subprocess.Popen[bytes]]]]:
    """A coordinator and two devices as processes on synthetic sensors."""
    text = f'fleet = "{fleet}"\n[broker]\nport = {broker.port}\n[coordinator]\nfolder = "run"\nexpect = 2\nmargin = 1\n'
    for name, owned in {"hub-1": '["chest_acc", "ecg"]', "band-1": '["chest_acc"]'}.items():
        text += f'[[device]]\nid = "{name}"\nmodalities = {owned}\nstate = "state"\ntelemetry = 1\nwatts = 2\n'
        text += 'will_delay = 1\n[device.source]\nsubject = "1"\nspeed = inf\npart = [0.0, 0.2]\n'
    config = tmp_path / "fleet.toml"
    config.write_text(text)
    running = {name: start_device(config, name) for name in ("hub-1", "band-1")}
    running["coordinator"] = relief("coordinator", "run", "--config", str(config), log=tmp_path / "log")
    yield config, running
    for process in running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_device(config: Path, name: str) -> subprocess.Popen[bytes]:
    return relief("device", "run", "--config", str(config), "--device", name, log=config.parent / "log")


@pytest.mark.timeout(400)  # three processes import torch, one of them twice, beside whatever else the machine does
def test_a_real_fleet_appears_learns_loses_a_device_gets_it_back_and_is_paused(
    browser: Any, broker: Broker, fleet: str, real: tuple[Path, dict[str, subprocess.Popen[bytes]]]
) -> None:
    config, running = real
    with served(fleet, broker.port, "--control", "--operator", "steering") as address:
        visitor = Visitor(browser, address)
        visitor.page.set_default_timeout(60_000)  # processes that import torch on a busy machine
        visitor.open()
        round_is = "Number(document.querySelector('#headline').textContent.match(/round (\\d+)/)?.[1])"
        visitor.until("document.querySelector('#tiles').textContent.includes('2 / 2')")
        visitor.until(f"{round_is} >= 3")
        running["band-1"].send_signal(signal.SIGKILL)
        running["band-1"].wait()
        visitor.until("document.querySelector('#alarms').textContent.includes('offline: band-1')")
        visitor.until("document.querySelector('#tiles').textContent.includes('1 / 2')")
        running["band-1"] = start_device(config, "band-1")
        visitor.until("document.querySelector('#tiles').textContent.includes('2 / 2')")
        visitor.page.get_by_role("button", name="Pause").click()
        visitor.page.get_by_role("button", name="Yes, pause").click()
        visitor.until("document.querySelector('#headline').textContent.endsWith('paused')")
        visitor.page.wait_for_timeout(5000)  # a round that was open when it was paused comes to its end
        held = visitor.page.evaluate(round_is)
        visitor.page.wait_for_timeout(1500)
        assert visitor.page.evaluate(round_is) == held
        visitor.page.get_by_role("button", name="Resume").click()
        visitor.page.get_by_role("button", name="Yes, resume").click()
        visitor.until(f"{round_is} > {held}")
        picture(visitor, "dashboard-real.png")
        clean(visitor)


def test_devices_of_an_earlier_run_leave_the_page(browser: Any, broker: Broker) -> None:
    name = f"again{os.getpid()}"
    with served(name, broker.port, "--operator", "again") as address:
        fleets = SyntheticCoordinator(name, MqttTransport(BrokerConfig(port=broker.port), f"coordinator-{name}"), 6)
        overview, device = visit(browser, address), visit(browser, address, "device/band-2")
        overview.until("document.querySelector('#tiles').textContent.includes('6 / 6')")
        overview.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 6")
        device.until("document.querySelector('#facts').textContent.includes('windows')")
        fleets.fleet = SyntheticFleet(3, epoch=8)
        fleets.say()
        overview.until("document.querySelector('#tiles').textContent.includes('3 / 3')")
        overview.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 3")
        device.until("document.querySelector('#facts').textContent.includes('Unknown device')")
        fleets.fleet = SyntheticFleet(2, epoch=9)
        fleets.fleet.devices = {f"ward-{id}": d for id, d in fleets.fleet.devices.items()}
        fleets.say()
        overview.until("document.querySelector('#tiles').textContent.includes('2 / 2')")
        overview.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 2")
        clean(overview)
        clean(device)
        fleets.close()


def processor_seconds(mark: str) -> float:
    """What all processes with these words in their command line have used, in seconds of one core."""
    ticks = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                if mark.encode() in (process / "cmdline").read_bytes():
                    ticks += sum(map(int, (process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            except OSError:  # it has just ended
                continue
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor time from /proc")
def test_a_thousand_devices_change_every_second_and_the_page_stays_fluid(browser: Any, broker: Broker) -> None:
    name = f"thousand{os.getpid()}"
    with served(name, broker.port, "--operator", "many") as address:
        many = SyntheticCoordinator(name, MqttTransport(BrokerConfig(port=broker.port), f"coordinator-{name}"), 1000)
        many.fleet.open()
        many.say()
        visitor = visit(browser, address)
        visitor.until("document.querySelector('#tiles').textContent.includes('1000 / 1000')")
        visitor.until("document.querySelectorAll('.ag-row').length > 5")
        assert visitor.page.evaluate("document.querySelectorAll('.ag-row').length") < 200, "only what is seen is drawn"
        visitor.page.evaluate(
            "window.gaps = []; let last = performance.now();"
            "(function frame() { const now = performance.now(); gaps.push(now - last); last = now;"
            " requestAnimationFrame(frame) })()"
        )
        before, began = processor_seconds(name), time.monotonic()
        for _ in range(8):
            many.fleet.finish()
            many.fleet.open()
            many.say()
            visitor.page.wait_for_timeout(1000)
        share = (processor_seconds(name) - before) / (time.monotonic() - began)
        visitor.until(f"document.querySelector('#headline').textContent.includes('round {many.fleet.round} ')")
        middle = visitor.page.evaluate("gaps.sort((a, b) => a - b)[Math.floor(gaps.length / 2)]")
        assert share < 0.5, "processor time of the page's server, in cores"
        assert middle < 200, "milliseconds between two frames"
        clean(visitor)
        many.close()
