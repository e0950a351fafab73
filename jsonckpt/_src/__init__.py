"""The implementation. Only what the top of the package names is public."""
