"""Tensors to bytes and back (section 6.4 of the format): memory, views, aliasing, devices."""
