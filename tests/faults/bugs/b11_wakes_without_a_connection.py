"""A device that misses blocks spins while it has no connection."""

MODULE = "device_runtime.agent"
OLD = """\
if self.connected and self._waiting.lacks:"""
NEW = """\
if self._waiting.lacks:"""
