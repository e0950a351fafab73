"""Says what is in a checkpoint, without torch.

``statistics`` reads tensors chunk by chunk and keeps numbers about them, with ``moments`` and
``histogram``; ``element_values`` makes numbers of raw bytes.
"""
