"""The pictures as ECharts options: plain values made from the board. Colours hold 3:1 on light and on dark."""

from __future__ import annotations

from typing import Any

from tools.dashboard.board import Board, Record

BLUE, RED, GREEN, AMBER, PURPLE, TEAL = "#2f7ed8", "#d1495b", "#1f9254", "#b57614", "#9467bd", "#0d8f8f"
COLOURS = (BLUE, RED, GREEN, AMBER, PURPLE, TEAL, "#d0549b", "#7a8592")
GREY = "#808a94"
SCORES = {"in_subject": "in-subject", "held_out": "held-out", "rare_only": "rare modality alone"}
MANY = 24  # devices that the ownership picture shows at once
Options = dict[str, Any]


def text_colour(dark: bool) -> str:
    """Of axes and legends."""
    return "#d5dce3" if dark else "#2b3642"


def _frame(dark: bool, **more: Any) -> Options:
    ink = text_colour(dark)
    return {
        "animation": False,
        "color": list(COLOURS),
        "textStyle": {"color": ink, "fontFamily": "inherit"},
        "grid": {"left": 52, "right": 18, "top": 40, "bottom": 44},
        "legend": {"top": 4, "type": "scroll", "textStyle": {"color": ink}, "pageTextStyle": {"color": ink}},
        "tooltip": {"trigger": "axis", "confine": True},
        **more,
    }


def _axis(dark: bool, name: str, **more: Any) -> Options:
    ink, line = text_colour(dark), "#3a4652" if dark else "#d3d9df"
    return {
        "name": name,
        "nameLocation": "middle",
        "nameGap": 28,
        "nameTextStyle": {"color": ink},
        "axisLabel": {"color": ink, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": GREY}},
        "splitLine": {"lineStyle": {"color": line}},
        **more,
    }


def _line(name: str, data: list[Any], **more: Any) -> Options:
    return {"name": name, "type": "line", "data": data, "showSymbol": len(data) < 20, "symbolSize": 5, **more}


def _or(empty: str, options: Options) -> Options:
    """The picture; where no line has a point yet, these words in its middle instead of nothing."""
    drawn = any(series["data"] for series in options["series"])
    # An empty text, not no title: what is left out of new options stays from the old ones.
    style = {"color": options["textStyle"]["color"], "fontSize": 14, "fontWeight": "normal"}
    options["title"] = {"text": "" if drawn else empty, "left": "center", "top": "middle", "textStyle": style}
    return options


def scores(board: Board, dark: bool, *, seconds: bool) -> Options:
    """F1 over rounds or seconds: three lines of this run, and the held-out line of each earlier one."""

    def at(record: Record, score: dict[str, Any]) -> float:
        return round(float(score["at"]) - record.zero, 2) if seconds else float(score["round"])

    run, series = board.run, []
    for (key, name), colour in zip(SCORES.items(), COLOURS, strict=False):
        data = [[at(run, s), round(s[key], 4)] for s in run.scores.values() if key in s]
        series.append(_line(name, data, itemStyle={"color": colour}, lineStyle={"width": 2.5}))
    for record in board.earlier:
        data = [[at(record, s), round(s["held_out"], 4)] for s in record.scores.values() if "held_out" in s]
        dotted = {"type": "dashed", "color": GREY, "width": 2}
        series.append(_line(f"{record.strategy}, held-out", data, itemStyle={"color": GREY}, lineStyle=dotted))
    return _or(
        "No evaluation yet",
        _frame(
            dark,
            xAxis=_axis(dark, "seconds since round 1 began" if seconds else "round", type="value"),
            yAxis=_axis(dark, "", type="value", min=0, max=1),
            series=series,
        ),
    )


def divergence(board: Board, dark: bool) -> Options:
    """How much each cohort's members disagreed, block by block, over rounds."""
    rounds = list(board.run.rounds.values())
    blocks = list(dict.fromkeys(b for r in rounds for b in r["divergence"]))
    series = []
    for block in blocks:
        data = [[r["round"], round(r["divergence"][block], 4)] for r in rounds if block in r["divergence"]]
        style = {"type": "dashed", "color": GREY} if block == "shared" else {"width": 2}
        more = {"itemStyle": {"color": GREY}} if block == "shared" else {}
        series.append(_line(block, data, lineStyle=style, **more))
    return _or(
        "No round is done yet",
        _frame(
            dark,
            xAxis=_axis(dark, "round", type="value", minInterval=1),
            yAxis=_axis(dark, "", type="value", min=0, max=1),
            series=series,
        ),
    )


def spent(board: Board, dark: bool, *, what: str) -> Options:
    """`joules` or `bytes`, summed over rounds, beside what FedAvg would have spent in the same rounds."""
    ours, theirs, sums = [], [], [0.0, 0.0]
    for r in board.run.rounds.values():
        other = r.get("fedavg", {})
        if what == "joules":
            sums[0] += r["joules"]
            sums[1] += other.get("joules", 0.0)
        else:
            sums[0] += (r["bytes_up"] + r["bytes_down"]) / 1e6
            sums[1] += (other.get("bytes_up", 0) + other.get("bytes_down", 0)) / 1e6
        ours.append([r["round"], round(sums[0], 3)])
        theirs.append([r["round"], round(sums[1], 3)])
    dashed = {"type": "dashed", "color": GREY, "width": 2}
    name = board.run.strategy or "this run"
    return _or(
        "No round is done yet",
        _frame(
            dark,
            xAxis=_axis(dark, "round", type="value", minInterval=1),
            yAxis=_axis(dark, "", type="value", axisLabel={"color": text_colour(dark)}),
            series=[
                _line(name, ours, areaStyle={"opacity": 0.15}, lineStyle={"width": 2.5}),
                _line("FedAvg, estimated", theirs, itemStyle={"color": GREY}, lineStyle=dashed),
            ],
        ),
    )


def ownership(board: Board, dark: bool) -> Options:
    """Modality x device: what a device owns and what this round trains there, as a share of the most steps.

    Paler: what it trains without owning the sensor.
    """
    devices, blocks = board.summary.get("devices", {}), list(board.summary.get("cohorts", {}))
    names = list(devices)
    most = max((s for d in devices.values() for s in d["steps"].values()), default=0) or 1
    owned: list[list[float]] = []
    foreign: list[list[float]] = []  # trained although the device lacks the sensor: methods that fill it with zeros
    for x, device in enumerate(devices.values()):
        for m in dict.fromkeys((*device["modalities"], *(b for b in device["steps"] if b in blocks))):
            steps = device["steps"].get(m, 0)
            cells = owned if m in device["modalities"] else foreign
            cells.append([x, blocks.index(m), steps, round(steps / most, 2)])
    labels = len(names) <= 12
    frame = _frame(dark, tooltip={"confine": True, ":formatter": _OWNERSHIP_TIP})
    # Two neutral cells on either ground, then ever stronger blue; the numbers on them keep their contrast.
    ramp = ["#2b3742", "#24507d", "#1d62ab", "#1a6fd0"] if dark else ["#e3e8ed", "#a9cdf3", "#7fb5ee", "#5b9fe8"]
    pale = ["#1a222b", "#1b3047"] if dark else ["#f6f8fa", "#e3eefa"]
    series = {
        "type": "heatmap",
        "progressive": 0,
        "itemStyle": {"borderColor": "#11171d" if dark else "#ffffff", "borderWidth": 2 if labels else 0},
        "label": {"show": labels, ":formatter": "(p) => p.value[2] || '·'", "color": text_colour(dark)},
    }
    shades: Options = {"show": False, "min": 0, "max": 1, "dimension": 3}
    frame |= {
        "legend": {"show": False},
        "grid": {"left": 92, "right": 12, "top": 8, "bottom": 54 if len(names) <= MANY else 78},
        "xAxis": _axis(dark, "", type="category", data=names) | {"splitArea": {"show": False}},
        "yAxis": _axis(dark, "", type="category", data=blocks, inverse=True),
        "visualMap": [
            {**shades, "seriesIndex": 0, "inRange": {"color": ramp}},
            {**shades, "seriesIndex": 1, "inRange": {"color": pale}},
        ],
        "series": [{**series, "data": owned}, {**series, "data": foreign}],
    }
    frame["xAxis"]["axisLabel"] |= {"rotate": 40 if len(names) > 6 else 0}
    if len(names) > MANY:
        frame["dataZoom"] = [
            {"type": "slider", "startValue": 0, "endValue": 4 * MANY, "height": 18, "bottom": 6},
            {"type": "inside", "startValue": 0, "endValue": 4 * MANY},
        ]
    return frame


_OWNERSHIP_TIP = (
    "(p) => p.name + ': ' + (p.value[2] ? p.value[2] + ' local steps this round' : 'not trained this round')"
    " + (p.seriesIndex ? ', on zeros: it lacks the sensor' : '')"
)


def timeline(board: Board, dark: bool) -> Options:
    """This round's devices, slowest first: a bar for the time taken, a mark for the time predicted."""
    devices = list(reversed(board.timeline()))
    colours = {(True, False): GREEN, (False, False): BLUE, (True, True): AMBER, (False, True): RED}
    bars = [{"value": round(d["seconds"], 2), "itemStyle": {"color": colours[d["done"], d["late"]]}} for d in devices]
    marks = [[round(d["predicted"], 2), d["id"]] for d in devices if d["predicted"]]
    frame = _frame(dark, tooltip={"trigger": "axis", "axisPointer": {"type": "shadow"}, "confine": True})
    frame |= {
        "grid": {"left": 84, "right": 18, "top": 34, "bottom": 40},
        "xAxis": _axis(dark, "seconds", type="value", min=0),
        "yAxis": _axis(dark, "", type="category", data=[d["id"] for d in devices]),
        "series": [
            {"name": "took", "type": "bar", "data": bars, "barMaxWidth": 18, "itemStyle": {"color": GREEN}},
            {
                "name": "predicted",
                "type": "scatter",
                "data": marks,
                "symbol": "rect",
                "symbolSize": [3, 16],
                "itemStyle": {"color": text_colour(dark)},
            },
        ],
    }
    return _or("No round is open", frame)


def device_rounds(board: Board, id: str, dark: bool) -> Options:
    """A device's seconds per round, taken and predicted."""
    life = list(board.lives.get(id, ()))
    return _or(
        "No round of this device since then",
        _frame(
            dark,
            xAxis=_axis(dark, "round", type="value", minInterval=1, scale=True),
            yAxis=_axis(dark, "", type="value"),
            series=[
                _line("seconds taken", [[r["round"], round(r["seconds"], 3)] for r in life]),
                _line(
                    "predicted",
                    [[r["round"], round(r["predicted"], 3)] for r in life if r["predicted"]],
                    itemStyle={"color": GREY},
                    lineStyle={"type": "dashed"},
                ),
            ],
        ),
    )


def device_power(board: Board, id: str, dark: bool) -> Options:
    """A device's watts and its hottest sensor over time, as its telemetry says."""
    heard = list(board.telemetry.get(id, ()))
    watts = [[1000 * t["time"], round(t["watts"], 2)] for t in heard if t.get("watts") is not None]
    degrees = [[1000 * t["time"], round(max(t["celsius"].values()), 1)] for t in heard if t.get("celsius")]
    return _or(
        "No watts and no temperatures in its telemetry yet",
        _frame(
            dark,
            xAxis=_axis(dark, "", type="time"),
            yAxis=[_axis(dark, "", type="value", scale=True), _axis(dark, "", type="value", scale=True)],
            series=[_line("watts", watts), _line("°C", degrees, yAxisIndex=1)],
        ),
    )
