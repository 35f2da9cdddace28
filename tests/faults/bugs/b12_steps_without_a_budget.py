"""The number of steps follows the loosest limit instead of the tightest."""

MODULE = "coordinator.allocation"
OLD = """\
    return min(left)"""
NEW = """\
    return max(left)"""
