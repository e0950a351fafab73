"""Files of other programs that are not free-form JSON: what they are, and their readers."""
