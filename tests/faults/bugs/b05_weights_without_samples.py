"""The mean number of steps is not weighted by samples."""

MODULE = "coordinator.aggregation"
OLD = """\
weighted_steps += n * one.steps"""
NEW = """\
weighted_steps += one.steps * samples / max(trainers, 1)"""
