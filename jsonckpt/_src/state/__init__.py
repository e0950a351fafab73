"""Python values to JSON and back (sections 6.1 to 6.3 of the format)."""
