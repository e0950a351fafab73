"""JSON of other programs: finds the tensors in it and makes them."""
