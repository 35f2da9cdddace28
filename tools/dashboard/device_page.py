"""One device's own page: what it is, what it does this round, what it has done, its power and temperature."""

from __future__ import annotations

import html
import time
from typing import Any

from nicegui import ui

from tools.dashboard import charts
from tools.dashboard.feed import Feed
from tools.dashboard.page import TICK, Chrome
from tools.dashboard.steering import Steering, button


class DevicePage:
    """One visitor's view of one device."""

    def __init__(self, feed: Feed, id: str) -> None:
        self.feed, self.board, self.id = feed, feed.board, id
        self.chrome = Chrome(feed, id, home=False)
        self.steering = Steering(feed)
        self._version = -1
        with feed.lock, ui.element("div").classes("board"):
            with ui.element("section").classes("card narrow"):
                self.facts = ui.html(sanitize=False).props('id="facts"')
                if feed.rights:
                    self._buttons()
            self.rounds = self._card("Seconds per round since this page's server started", "wide")
            self.power = self._card("Watts and temperature, by its telemetry", "half")
            self.counts = ui.html(sanitize=False).classes("card half")
        self.chrome.on_look(self._redraw)

    def _card(self, title: str, width: str) -> ui.echart:
        with ui.element("section").classes(f"card {width}"):
            with ui.element("h2"):
                ui.html(html.escape(title), sanitize=False, tag="span")
            return ui.echart({}).classes("picture").props(f'role=img aria-label="{html.escape(title)}"')

    def _buttons(self) -> None:
        with ui.element("div").classes("strip"):
            self.steering.device_buttons(self.id)
        with ui.element("div").classes("strip"):
            seconds = ui.number("Label the last seconds", value=60, min=1, max=86400, format="%d").classes("field")
            label = ui.number("as class", value=0, min=0, format="%d").classes("field")

            async def send() -> None:
                now = time.time()  # when the button was pressed, not when it was confirmed
                await self.steering.label(self.id, now - float(seconds.value or 60), now, int(label.value or 0))

            button("Send label", send)

    def live(self) -> None:
        """Go on for as long as the visitor stays."""
        self.chrome.settle()
        ui.timer(TICK, self.tick)

    def _redraw(self) -> None:
        self._version = -1
        self.tick()

    def tick(self) -> None:
        """Send what is new."""
        if self.board.version == self._version:
            return
        with self.feed.lock:
            self._version = self.board.version
            self.chrome.tell()
            self.facts.set_content(self._facts())
            self.counts.set_content(self._said())
            dark = bool(self.chrome.dark.value)
            for chart, options in (
                (self.rounds, charts.device_rounds(self.board, self.id, dark)),
                (self.power, charts.device_power(self.board, self.id, dark)),
            ):
                if chart.options != options:
                    chart.options.clear()
                    chart.options.update(options)
                    chart.update()

    def _facts(self) -> str:
        row = self.board.rows.get(self.id)
        if row is None:
            return "<h2>Unknown device</h2><p>The coordinator has not heard of it.</p>"
        facts: dict[str, Any] = {
            "state": row["state"] + (f": {row['why']}" if row["why"] else ""),
            "tier": row["tier"] or "—",
            "modalities": row["modalities"],
            "this round": row["work"],
            "last round": row["round"] or "—",
            "predicted": f"{row['predicted']:.2f} s" if row["predicted"] else "—",
            "took": f"{row['seconds']:.2f} s" if row["seconds"] else "—",
            "power": f"{row['watts']} W ({row['source']})" if row["watts"] else f"not known ({row['source']})",
            "link": row["link"],
            "version": row["version"],
            "last report": self.board.reports.get(self.id, "—"),
            "windows": row["windows"],
        }
        return "<h2>Now</h2>" + _list(facts, f"state-{row['state']}")

    def _said(self) -> str:
        heard = self.board.telemetry.get(self.id)
        if not heard:
            return "<h2>Telemetry</h2><p>None was heard yet.</p>"
        last = {k: v for k, v in heard[-1].items() if k not in ("time", "counts")}
        plain = {k.replace("_", " "): _plain(v, k) for k, v in last.items()}
        counts = {k: str(v) for k, v in heard[-1].get("counts", {}).items()}
        return "<h2>Telemetry</h2>" + _list(plain) + ("<h2>Counts</h2>" + _list(counts) if counts else "")


def _plain(value: Any, name: str = "") -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if "bytes" in name.split("_") and isinstance(value, (int, float)):
        return f"{value / 1e6:.1f} MB"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _list(facts: dict[str, Any], first: str = "") -> str:
    lines = []
    for n, (name, value) in enumerate(facts.items()):
        style = f' class="state {first}"' if first and not n else ""
        lines.append(f"<dt>{html.escape(name)}</dt><dd{style}>{html.escape(str(value))}</dd>")
    return f'<dl class="facts">{"".join(lines)}</dl>'
