"""Says what is in a checkpoint, without torch.

``facts`` is a pure function of a manifest. ``state_facts`` finds epoch, rates, history and the like
in the state; ``tree`` and ``overview`` draw it; all read it with ``plain_values``. ``api`` opens a
checkpoint.

``statistics`` reads tensors chunk by chunk and keeps numbers about them, with ``moments`` and
``histogram``; ``element_values`` makes numbers of raw bytes.
"""
