"""A restarted coordinator takes the committed round for the one that is open."""

MODULE = "coordinator.ledger"
OLD = """\
int(header["epoch"]), int(header["round"]) + 1"""
NEW = """\
int(header["epoch"]), int(header["round"])"""
