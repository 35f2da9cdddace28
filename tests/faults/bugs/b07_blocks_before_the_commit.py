"""A round's blocks are published before its commit is on disk."""

MODULE = "coordinator.service"
OLD = """\
self._outgoing += list(done.blocks)"""
NEW = """\
[self._speaker.block(name) for name in done.blocks]"""
