"""A device trains from whatever version it holds."""

MODULE = "device_runtime.assignments"
OLD = """\
wrong = version is not None and have and"""
NEW = """\
wrong = False and version is not None and have and"""
