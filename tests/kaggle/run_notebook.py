"""Runs the notebook once, as Kaggle does: a program of its own, because nbclient leaves sockets.

Usage: run_notebook.py NOTEBOOK DIRECTORY CONFIG. DIRECTORY is where the kernel runs; CONFIG is JSON
that replaces members of the notebook's CONFIG. Prints what the cells printed.
"""

from __future__ import annotations

import json
import sys

import nbclient
import nbformat


def main(path: str, directory: str, config: str) -> None:
    """Run it, and print the text of all outputs."""
    notebook = nbformat.read(path, as_version=4)
    (number,) = (
        number
        for number, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    given = f"import json\nCONFIG.update(json.loads({config!r}))"
    which = "import sys\nprint('kernel', sys.executable)"
    for text in (given, which):
        notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(text))
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": directory}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = [output["text"] for output in outputs if output.output_type == "stream"]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    print(json.dumps({"said": "".join(said), "drawn": drawn}))


if __name__ == "__main__":
    main(*sys.argv[1:])
