"""Files that work without jsonckpt: a reader, and the converter of the old guide."""
