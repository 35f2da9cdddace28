"""Assignments go out before the round that they belong to is on disk."""

MODULE = "coordinator.service"
OLD = """\
        else:
            self._outgoing.append(action)"""
NEW = """\
        else:
            self._speaker.speak(action)"""
