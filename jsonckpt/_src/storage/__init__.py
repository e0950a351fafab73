"""Files (section 7 of the format): reading, committing, remote file systems."""
