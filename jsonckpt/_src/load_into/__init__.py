"""A checkpoint into tensors that exist: ``load_into``."""
