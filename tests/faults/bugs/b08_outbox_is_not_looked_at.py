"""A device that starts anew does not send what its last life left in the outbox."""

MODULE = "device_runtime.agent"
OLD = """\
        for update, assignment in kept:
            self._backlog.add(update, 0.0)"""
NEW = """\
        for update, assignment in kept:"""
