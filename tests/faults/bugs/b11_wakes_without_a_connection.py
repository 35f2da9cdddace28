"""A device that misses blocks spins while it has no connection."""

MODULE = "device_runtime.agent"
OLD = """\
if self.connected and waiting.lacks:"""
NEW = """\
if waiting.lacks:"""
