"""The late death of an earlier life counts for the present one."""

MODULE = "coordinator.registry"
OLD = """\
if known and not status.online and status.boot != known.status.boot:"""
NEW = """\
if known and not known.status.online and status.boot != known.status.boot:"""
