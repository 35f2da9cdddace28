"""A device that starts anew does not send what its last life left in the outbox."""

MODULE = "device_runtime.agent"
OLD = """\
        for update, assignment in kept:
            self._backlog.add(update, math.inf, begun=True)  # what of it has come is asked first"""
NEW = """\
        for update, assignment in kept:"""
