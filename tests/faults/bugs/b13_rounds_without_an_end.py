"""A round waits for everybody, however long."""

MODULE = "coordinator.rounds"
OLD = """\
(self._all_in() or now >= self.deadline)"""
NEW = """\
self._all_in()"""
