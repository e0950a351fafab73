"""``jsonckpt.diff``: what differs between two checkpoints. torch is not needed.

``states`` walks both states side by side and pairs their tensors. ``contents`` says which pairs
have the same bytes: stored checksums decide where both sides have them, else both are read.
``distance`` measures how far two tensors are apart. ``api`` runs these in this order.
"""
