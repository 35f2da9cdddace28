"""A round waits for everybody, however long."""

MODULE = "coordinator.rounds"
OLD = """\
closes = self._enough() or self._all_in() or now >= self.deadline"""
NEW = """\
closes = self._enough() or self._all_in()"""
