"""The buttons: each asks once more, sends one request and says what the coordinator answered."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable
from typing import Any

from nicegui import ui

from protocol.messages import Label
from tools.dashboard.feed import Feed

# order -> its button, and what is asked before it is sent
ORDERS = (
    ("adopt", "Adopt", "use the newest blocks for its predictions?"),
    ("rollback", "Roll back", "predict with the blocks it used before?"),
    ("profile", "Measure anew", "measure its speed anew?"),
)


def button(text: str, action: Callable[..., Any], *, strong: bool = False) -> ui.element:
    """A plain button, reachable by keyboard."""
    made = ui.element("button").classes("button" + " strong" * strong).props("type=button")
    with made:
        ui.html(html.escape(text), sanitize=False, tag="span")
    made.on("click", action)
    return made


class Steering:
    """What may be asked for is what the coordinator says it can; without rights there are no buttons at all."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def can(self, kind: str) -> bool:
        """Whether a button for it makes sense."""
        return self.feed.rights and kind in self.feed.board.summary.get("can", ("pause", "resume"))

    def fleet_buttons(self) -> None:
        """Pause and resume, as far as the coordinator can."""
        if not self.feed.rights:
            ui.label("read only").classes("soft")
            return
        asked = {
            "pause": "Finish the round that is open and begin no other?",
            "resume": "Begin rounds again?",
        }
        for kind, question in asked.items():
            if self.can(kind):
                button(kind.capitalize(), lambda k=kind, q=question: self.confirm(k, q))

    def device_buttons(self, device: str) -> None:
        """Quarantine, release, and the orders that a device obeys."""
        for kind, question in (
            ("quarantine", f"Leave {device} out until it is released?"),
            ("release", f"Take {device} in again?"),
        ):
            if self.can(kind):
                button(
                    kind.capitalize(),
                    lambda k=kind, q=question: self.confirm(k, q, device=device, reason="by an operator"),
                )
        if self.can("order"):
            for order, name, question in ORDERS:
                button(name, lambda o=order, q=question: self.order(device, o, q))

    async def order(self, device: str, order: str, question: str) -> None:
        """Have the coordinator order something of one device; the device's report shows on its page."""
        await self.confirm("order", f"{device}: {question}", devices=[device], order=order, args={})

    async def confirm(self, kind: str, question: str, **args: Any) -> None:
        """Ask the visitor, then the coordinator."""
        if await self._sure(kind, question):
            await self._ask(kind, args)

    async def _sure(self, kind: str, question: str) -> bool:
        with ui.dialog() as dialog, ui.element("div").classes("ask").props("role=alertdialog"):
            ui.label(question)
            with ui.element("div").classes("head"):
                button("Cancel", lambda: dialog.submit(False))
                button(f"Yes, {kind}", lambda: dialog.submit(True), strong=True)
        sure = await dialog
        dialog.delete()
        return bool(sure)

    async def _ask(self, kind: str, args: dict[str, Any]) -> None:
        try:
            reply = await asyncio.wrap_future(self.feed.ask(kind, **args))
        except (TimeoutError, asyncio.TimeoutError) as error:
            ui.notify(f"{kind}: {error}", type="negative")
            return
        ui.notify(f"{kind}: {'done' if reply.ok else reply.reason}", type="positive" if reply.ok else "negative")

    async def label(self, device: str, start: float, end: float, label: int) -> None:
        """Ask the visitor, then send an annotation to a device."""
        if await self._sure("label", f"{device}: were the last {end - start:.0f} s class {label}?"):
            self.feed.label(device, Label(start=start, end=end, label=label))
            ui.notify(f"label {label} for {end - start:.0f} s was sent to {device}")
