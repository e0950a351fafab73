"""Makes one self-contained HTML page of one checkpoint or of several.

``api`` opens the checkpoints one after the other. ``collect`` reads each of them once: statistics
and, through ``grids``, a small picture of each tensor. ``optimizers`` finds the moments of each
weight, ``health`` what deserves a look, ``tree`` lists the state, ``run`` and ``compare`` set
several checkpoints side by side. ``page`` puts all of it as data into ``page.html``, ``page.css``
and ``page.js``.
"""
