"""An assignment that was answered can be answered once more, a round later."""

MODULE = "coordinator.lateness"
OLD = """\
        if device not in stored or stored[device].assignment != a.id"""
NEW = """\
        if device in stored or device not in stored"""
