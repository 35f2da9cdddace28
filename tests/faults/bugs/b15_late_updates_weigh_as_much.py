"""An update that comes rounds late counts like one that came in time."""

MODULE = "coordinator.lateness"
OLD = """\
staleness = versions[block] - head.blocks[block][0]"""
NEW = """\
staleness = 0"""
