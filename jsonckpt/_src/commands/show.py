"""``jsonckpt show``: list what is in a checkpoint."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import counted, printable
from ..terminal.console import EXIT_OK, dump_json, say
from ..terminal.options import Commands, add_common, add_expected_digest, limits_of

if TYPE_CHECKING:
    from ..load.checkpoint import Checkpoint

#: Longer names are not padded.
_WIDEST_NAME = 80


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "show", help="list what is in a checkpoint, without reading tensors"
    )
    add_common(parser)
    add_expected_digest(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the checkpoint's facts and its tensors."""
    from ..load.checkpoint import open_checkpoint

    with open_checkpoint(
        args.path, limits=limits_of(args), expected_digest=args.expected_digest
    ) as checkpoint:
        if args.json:
            say(dump_json(_summary(checkpoint)))
        else:
            _print(args.path, checkpoint)
    return EXIT_OK


def _print(path: str, checkpoint: Checkpoint) -> None:
    manifest = checkpoint.manifest
    totals = manifest.totals()
    say(f"{printable(path)}: saved {manifest.created_at} by {printable(manifest.created_by)}")
    say(
        f"{counted(totals['tensors'], 'tensor')}, {counted(totals['bytes'], 'byte')}; "
        f"{counted(totals['stored_bytes'], 'byte')} of text; checksum {manifest.checksum}"
    )
    for key, value in manifest.metadata.items():
        text = json.dumps(value, ensure_ascii=False)
        say(f"metadata {printable(key)}: {printable(text)}")
    tensors = _tensors(checkpoint)
    names = [printable(tensor["name"]) for tensor in tensors]
    width = min(_WIDEST_NAME, max(map(len, names), default=0))
    for name, tensor in zip(names, tensors):
        say(f"{name:<{width}}  {tensor['dtype']:<10} {tensor['shape']}")


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "save_id": manifest.save_id,
        "created_at": manifest.created_at,
        "created_by": manifest.created_by,
        "checksum": manifest.checksum,
        "metadata": manifest.metadata,
        "totals": manifest.totals(),
        "tensors": _tensors(checkpoint),
    }


def _tensors(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": str(entry.dtype).removeprefix("torch."),
            "shape": list(entry.shape),
            "bytes": entry.nbytes,
        }
        for name, entry in checkpoint.items()
    ]
