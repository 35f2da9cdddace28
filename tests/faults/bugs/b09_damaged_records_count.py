"""A record with flipped bits is taken for whole."""

MODULE = "coordinator.segment"
OLD = """\
if self.crc(offset + FIXED, place.header_size) == header_crc and place.sound():"""
NEW = """\
if True:"""
