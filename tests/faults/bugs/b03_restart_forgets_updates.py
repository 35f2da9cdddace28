"""A restarted coordinator goes on with the round and without the updates it had accepted."""

MODULE = "coordinator.rounds"
OLD = """\
dict(assignments), dict(stored)"""
NEW = """\
dict(assignments), {}"""
