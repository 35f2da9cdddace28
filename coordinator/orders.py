"""An operator's order made into orders for devices: only the coordinator may speak to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import ValidationError

from protocol.messages import Order, Reply, Request


def passed_on(request: Request, known: Collection[str]) -> tuple[dict[str, Order], Reply]:
    """Device -> its order, and what the operator is told. A request that names an unknown device orders nothing.

    `request.args`: `devices`, a list of names; `order`, the kind; `args`, what the kind takes.
    """
    devices = request.args.get("devices")
    if not isinstance(devices, list) or not devices or not all(isinstance(one, str) for one in devices):
        return {}, _refused(request, "order: devices is no list of names")
    if reason := unheard(devices, known):
        return {}, _refused(request, f"order: {reason}")
    plain = {"id": request.id, "kind": request.args.get("order"), "args": request.args.get("args", {})}
    try:
        order = Order.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return {}, _refused(request, f"order: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    return dict.fromkeys(devices, order), Reply(id=request.id, ok=True)


def unheard(devices: Sequence[str], known: Collection[str]) -> str:
    """Why nothing can be done about these devices; empty where all of them are known."""
    unknown = [one for one in devices if one not in known]
    return f"never heard of {', '.join(unknown[:5])}" if unknown else ""


def _refused(request: Request, reason: str) -> Reply:
    return Reply(id=request.id, ok=False, reason=reason)
