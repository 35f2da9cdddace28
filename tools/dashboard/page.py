"""The overview: what learns, what lags, what it costs, what is wrong and what to do."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from tools.dashboard import charts
from tools.dashboard.alarms import alarms
from tools.dashboard.feed import Feed
from tools.dashboard.steering import Steering
from tools.phases import standing

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
TICK = 0.5  # seconds between two looks at the board; more with many devices, for the browser's sake
MANY = 200
NARROW = 640  # pixels; below, the table keeps what matters most
LOOK = """
const kept = localStorage.getItem('relief-look');
const dark = kept ? kept === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
emitEvent('look', {dark: dark, width: innerWidth});
"""
SECONDARY = ["why", "tier", "modalities", "predicted", "watts", "celsius", "kB", "link", "version"]

# So that the decimal points of a column stand below each other; what is not known stays empty.
TWO_PLACES = {":valueFormatter": "p => typeof p.value === 'number' ? p.value.toFixed(2) : p.value"}

COLUMNS: list[dict[str, Any]] = [
    {
        "field": "id",
        "headerName": "device",
        "pinned": "left",  # and as wide as this: what is pinned takes no part in sharing the width out
        "width": 125,
        "cellClass": "id-link",
        "sort": "asc",
        ":comparator": "(a, b) => a.localeCompare(b, undefined, {numeric: true})",
    },
    {"field": "state", "headerName": "state", "minWidth": 105, "cellClass": "state", "tooltipField": "why"},
    {"field": "tier", "headerName": "tier", "minWidth": 75},
    {"field": "modalities", "headerName": "modalities", "minWidth": 150, "tooltipField": "modalities"},
    {"field": "round", "headerName": "last round", "type": "numericColumn", "minWidth": 95},
    {"field": "work", "headerName": "steps × blocks", "minWidth": 200, "tooltipField": "work"},
    {"field": "predicted", "headerName": "predicted s", "type": "numericColumn", "minWidth": 105, **TWO_PLACES},
    {"field": "seconds", "headerName": "took s", "type": "numericColumn", "minWidth": 80, **TWO_PLACES},
    {"field": "watts", "headerName": "W", "type": "numericColumn", "minWidth": 60, "tooltipField": "source"},
    {"field": "celsius", "headerName": "°C", "type": "numericColumn", "minWidth": 60},
    {"field": "kB", "headerName": "kB sent", "type": "numericColumn", "minWidth": 80},
    {"field": "link", "headerName": "link", "minWidth": 75},
    {"field": "version", "headerName": "version", "minWidth": 80},
]
STATES = ("training", "done", "ready", "idle", "late", "offline", "declined", "quarantined")


class Chrome:
    """What every page has: style, title bar with the look and, with rights, the fleet's buttons."""

    def __init__(self, feed: Feed, title: str, *, home: bool) -> None:
        self.feed, self.board = feed, feed.board
        self.dark = ui.dark_mode(value=False)
        self._redraw: list[Callable[[], None]] = []
        ui.add_css(STYLE)
        with ui.element("header").classes("bar"):
            if not home:
                ui.link("← fleet", "/").classes("id-link")
            with ui.element("h1"):
                ui.html(html.escape(title), sanitize=False, tag="span")
            self.headline = ui.label().classes("soft").props('role=status aria-live=off id="headline"')
            ui.element("span").classes("grow")
            Steering(feed).fleet_buttons()
            self.look = ui.element("button").classes("button").props('type=button aria-label="Dark or light"')
            with self.look:
                ui.html("◐", sanitize=False, tag="span")
            self.look.on("click", self.other_look)

    def on_look(self, redraw: Callable[[], None]) -> None:
        """Call this whenever light becomes dark or the opposite."""
        self._redraw.append(redraw)

    def other_look(self) -> None:
        self._set(not self.dark.value, remember=True)

    def settle(self, narrow: Callable[[], object] | None = None) -> None:
        """Draw, then take over the visitor's look as soon as the browser tells it; `narrow` is called on a phone."""

        def told(event: Any) -> None:
            self._set(event.args["dark"] is True, remember=False)
            if narrow and event.args["width"] < NARROW:
                narrow()

        ui.on("look", told)
        ui.run_javascript(LOOK)
        for redraw in self._redraw:
            redraw()

    def _set(self, dark: bool, *, remember: bool) -> None:
        self.dark.value = dark
        if remember:
            ui.run_javascript(f"localStorage.setItem('relief-look', '{'dark' if dark else 'light'}')")
        for redraw in self._redraw:
            redraw()

    def tell(self) -> None:
        """The line beside the title."""
        s = self.board.summary
        if not s:
            self.headline.set_text("waiting for the coordinator")
            return
        self.headline.set_text(f"{s['strategy']} · {standing(s)}")


class Overview:
    """One visitor's view. Only what changed since the last tick is sent to the browser."""

    def __init__(self, feed: Feed) -> None:
        self.feed, self.board = feed, feed.board
        self.chrome = Chrome(feed, f"RELIEF · fleet {self.board.fleet}", home=True)
        self._version = self._drawn = -1
        self._plan: object = None
        self._by_seconds = False
        self._known: set[str] = set()
        self._alarms: object = None
        with feed.lock, ui.element("div").classes("board"):
            self.tiles = ui.html(sanitize=False).classes("tiles").props('id="tiles"')
            self.alarms = ui.html(sanitize=False).classes("alarms").props('role=log aria-label="Alarms" id="alarms"')
            self._table()
            self.ownership = self._card("Who owns what, and trains what this round", "wide")
            self.timeline = self._card("This round: slowest devices, seconds", "narrow")
            with ui.element("section").classes("card half"):
                with ui.element("div").classes("head"):
                    self._title("F1")
                    ui.switch("over seconds", on_change=self._over).props("dense")
                self.scores = self._picture("F1 in-subject, held-out and of the rare modality")
            self.divergence = self._card("Divergence per block: how far each cohort disagrees", "half")
            self.joules = self._card("Energy, joules above idle, beside the FedAvg estimate", "half")
            self.bytes = self._card("Traffic, megabytes up and down, beside the FedAvg estimate", "half")
        self.chrome.on_look(self._redraw)

    def _title(self, text: str) -> None:
        with ui.element("h2"):
            ui.html(html.escape(text), sanitize=False, tag="span")

    def _picture(self, about: str) -> ui.echart:
        chart = ui.echart({}).classes("picture")
        return chart.props(f'role=img aria-label="{html.escape(about)}"')

    def _card(self, title: str, width: str) -> ui.echart:
        with ui.element("section").classes(f"card {width}"):
            self._title(title)
            return self._picture(title)

    def _table(self) -> None:
        with ui.element("section").classes("card"):
            self._title("Devices")
            rules = {f"state-{state}": f"x === '{state}'" for state in STATES}
            columns = [{**c, "cellClassRules": rules} if c["field"] == "state" else c for c in COLUMNS]
            self.grid = ui.aggrid(
                {
                    "columnDefs": columns,
                    "rowData": [],
                    "defaultColDef": {"sortable": True, "resizable": True, "flex": 1},
                    ":getRowId": "(p) => p.data.id",
                    "animateRows": False,
                    "rowHeight": 32,
                    "headerHeight": 36,
                    "asyncTransactionWaitMillis": 50,
                    "overlayNoRowsTemplate": "no device has said anything yet",
                    "tooltipShowDelay": 300,
                },
                theme="quartz",
            ).classes("grid")
            self.grid.on("cellClicked", self._open, args=["colId", "rowId"])
            self.grid.on("cellKeyDown", self._open, args=["colId", "rowId"])

    def _open(self, event: Any) -> None:
        if event.args.get("colId") == "id" and event.args.get("rowId"):
            ui.navigate.to(f"/device/{event.args['rowId']}")

    def _over(self, event: Any) -> None:
        self._by_seconds = bool(event.value)
        with self.feed.lock:
            self._draw(self.scores, charts.scores(self.board, self.dark, seconds=self._by_seconds))

    @property
    def dark(self) -> bool:
        return bool(self.chrome.dark.value)

    def live(self) -> None:
        """Go on for as long as the visitor stays."""
        self.chrome.settle(lambda: self.grid.run_grid_method("setColumnsVisible", SECONDARY, False))
        many = len(self.board.rows) > MANY
        ui.timer(2 * TICK if many else TICK, self.tick)

    def _redraw(self) -> None:
        self._version, self._drawn, self._plan, self._alarms = -1, -1, None, None
        self._known.clear()
        self.tick()

    def tick(self) -> None:
        """Send what is new."""
        with self.feed.lock:
            found = alarms(self.board)
            if found != self._alarms:
                self._alarms = found
                self.alarms.set_content("".join(_alarm(a.level.value, a.what, a.todo) for a in found))
            if self.board.version == self._version:
                return
            rows = self.board.newer(self._version)
            self._version = self.board.version
            self.chrome.tell()
            self.tiles.set_content(_tiles(self))
            self._rows(rows)
            self._pictures()

    def _rows(self, rows: list[dict[str, Any]]) -> None:
        gone = self._known - self.board.rows.keys()
        self._known -= gone
        new = [r for r in rows if r["id"] not in self._known]
        if not self._known and (new or gone):
            self.grid.run_grid_method("setGridOption", "rowData", rows)
        elif rows or gone:
            changed = [r for r in rows if r["id"] in self._known]
            removed = [{"id": id} for id in sorted(gone)]
            self.grid.run_grid_method("applyTransactionAsync", {"add": new, "update": changed, "remove": removed})
        self._known |= {r["id"] for r in new}

    def _pictures(self) -> None:
        board, dark = self.board, self.dark
        plan = (board.summary.get("round"), board.summary.get("phase") == "training", len(board.rows), dark)
        if plan != self._plan and (plan[1] or self._plan is None or plan[2:] != self._plan[2:]):  # type: ignore[index]
            self._plan = plan
            self._draw(self.ownership, charts.ownership(board, dark))
        self._draw(self.timeline, charts.timeline(board, dark))
        if board.drawn != self._drawn:
            self._drawn = board.drawn
            self._draw(self.scores, charts.scores(board, dark, seconds=self._by_seconds))
            self._draw(self.divergence, charts.divergence(board, dark))
            self._draw(self.joules, charts.spent(board, dark, what="joules"))
            self._draw(self.bytes, charts.spent(board, dark, what="bytes"))

    def _draw(self, chart: ui.echart, options: charts.Options) -> None:
        if chart.options != options:
            chart.options.clear()
            chart.options.update(options)
            chart.update()


def _alarm(level: str, what: str, todo: str) -> str:
    return f'<div class="alarm {level}"><b>{level}: {html.escape(what)}</b> <span>{html.escape(todo)}</span></div>'


def _tile(name: str, value: str, more: str = "") -> str:
    parts = (("name", name), ("value", value), ("more", more))
    return '<div class="tile">' + "".join(f'<div class="{c}">{html.escape(t)}</div>' for c, t in parts) + "</div>"


def _round(s: dict[str, Any]) -> str:
    return f"{min(s['round'], s['rounds'])} / {s['rounds']}" if s.get("rounds") else f"{s['round']}"


def _tiles(view: Overview) -> str:
    board, s = view.board, view.board.summary
    if not s:
        return ""
    counts, total = board.counts(), len(board.rows)
    gone = counts.get("offline", 0)
    busy = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()) if state != "offline")
    scores, rounds = s.get("scores") or {}, list(board.run.rounds.values())
    joules, other = sum(r["joules"] for r in rounds), sum(r["fedavg"].get("joules", 0.0) for r in rounds)
    sent = sum(r["bytes_up"] + r["bytes_down"] for r in rounds) / 1e6
    theirs = sum(r["fedavg"].get("bytes_up", 0) + r["fedavg"].get("bytes_down", 0) for r in rounds) / 1e6
    last = f"last took {s['last_seconds']:.1f} s" if s.get("last_seconds") is not None else ""
    f1 = [f"{scores[k]:.3f}" if k in scores else "—" for k in ("held_out", "in_subject", "rare_only")]
    return "".join(
        (
            _tile("round", _round(s), last),
            _tile("devices online", f"{total - gone} / {total}", busy),
            _tile("F1 held-out", f1[0], f"after round {s['scored_round']}" if scores else "not evaluated yet"),
            _tile("F1 in-subject", f1[1], f"rare modality alone {f1[2]}"),
            _tile(
                "energy",
                f"{joules:.0f} J",
                f"FedAvg about {other:.0f} J · watts {', '.join(s['power']) or 'not known'}",
            ),
            _tile("traffic", f"{sent:.1f} MB", f"FedAvg about {theirs:.1f} MB"),
            _tile("loss", f"{s['loss']:.3f}" if s.get("loss") is not None else "—", f"{s['elapsed']:.0f} s running"),
        )
    )


def pages(feed: Feed) -> None:
    """Register the overview and the devices' pages."""
    from tools.dashboard.device_page import DevicePage

    @ui.page("/", title=f"RELIEF {feed.board.fleet}")
    def overview() -> None:
        Overview(feed).live()

    @ui.page("/device/{id}", title=f"RELIEF {feed.board.fleet}: device")
    def device(id: str) -> None:
        DevicePage(feed, id).live()
