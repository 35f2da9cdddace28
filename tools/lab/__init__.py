"""The laboratory: the coordinator's own core and strategies in virtual time, over many devices trained at once."""
