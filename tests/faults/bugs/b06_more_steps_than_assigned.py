"""An update may claim more steps than it was assigned."""

MODULE = "coordinator.rounds"
OLD = """\
if not 1 <= steps <= assignment.steps[block]:"""
NEW = """\
if steps < 1:"""
