"""The text of shards (section 3 of the format), written and parsed. No I/O, no torch."""
