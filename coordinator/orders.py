"""An operator's order made into orders for devices: only the coordinator may speak to them."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ValidationError

from protocol.messages import Order, Reply, Request


def passed_on(request: Request, known: Collection[str]) -> tuple[dict[str, Order], Reply]:
    """Device -> its order, and what the operator is told. A request that names an unknown device orders nothing.

    `request.args`: `devices`, a list of names; `order`, the kind; `args`, what the kind takes.
    """
    devices = request.args.get("devices")
    if not isinstance(devices, list) or not devices:
        return {}, _refused(request, "order: devices is no list of names")
    unknown = [str(one) for one in devices if one not in known]
    if unknown:
        return {}, _refused(request, f"order: never heard of {', '.join(unknown[:5])}")
    plain = {"id": request.id, "kind": request.args.get("order"), "args": request.args.get("args", {})}
    try:
        order = Order.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return {}, _refused(request, f"order: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    return dict.fromkeys(devices, order), Reply(id=request.id, ok=True)


def _refused(request: Request, reason: str) -> Reply:
    return Reply(id=request.id, ok=False, reason=reason)
