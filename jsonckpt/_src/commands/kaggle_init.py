"""``jsonckpt kaggle-init``: make a directory ready to be a data set on Kaggle."""

from __future__ import annotations

import argparse

from ..errors import counted, printable
from ..progress import human
from ..terminal.console import EXIT_OK, complain_with, dump_json, say
from ..terminal.options import Commands, local_path


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "kaggle-init",
        help="make a directory ready to be a data set on Kaggle",
        description="Write dataset-metadata.json into a directory, after checking Kaggle's rules, "
        "and copy a reader beside the checkpoint. If the file is there, what is not given here "
        "stays as it is. Nothing is sent.",
        examples=("jsonckpt kaggle-init run --id me/my-run --title 'My run'",),
        epilog="Exit codes: 0 done, 1 there is no such directory or too many files are in it, 2 "
        "wrong usage or a rule is broken, 4 the report could not be printed.",
    )
    parser.add_argument("path", metavar="DIR", type=local_path)
    parser.add_argument("--id", metavar="OWNER/SLUG", help="required unless the file says it")
    parser.add_argument("--title", help="6 to 50 characters; by default made of the slug")
    parser.add_argument("--subtitle", help="20 to 80 characters")
    parser.add_argument("--license", metavar="NAME", help="such as CC0-1.0; by default: other")
    parser.add_argument("--description", metavar="TEXT")
    parser.add_argument(
        "--keyword", dest="keywords", action="append", metavar="WORD", help="may be repeated"
    )
    parser.add_argument(
        "--no-reader",
        action="store_true",
        help="do not copy jsonckpt_reader.py and checkpoint_to_json.py",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the metadata and print what comes next."""
    from ..kaggle.api import kaggle_init

    made = kaggle_init(
        args.path,
        id=args.id,
        title=args.title,
        subtitle=args.subtitle,
        license=args.license,
        description=args.description,
        keywords=args.keywords,
        with_reader=not args.no_reader,
    )
    if args.json:
        report = {
            "ok": True,
            "path": made.path,
            "updated": made.updated,
            "metadata": made.metadata,
            "files": made.files,
            "bytes": made.nbytes,
            "copied": list(made.copied),
            "warnings": list(made.warnings),
            "commands": list(made.commands),
        }
        say(dump_json(report))
        return EXIT_OK
    name = printable(f"{made.path}/dataset-metadata.json")
    say(f"{'updated' if made.updated else 'wrote'} {name}")
    if made.copied:
        say(f"copied {' and '.join(made.copied)}")
    say(f"the upload takes {counted(made.files, 'file')}, {human(made.nbytes)}")
    for sentence in made.warnings:
        complain_with("warning: ", "yellow", sentence)
    say(f"\nnext:\n  {made.commands[0]}\nlater, for each new version:\n  {made.commands[1]}")
    slug = made.metadata["id"].partition("/")[2]
    say(f"in a notebook:\n  jsonckpt.find('/kaggle/input').newest    # add the data set {slug}")
    return EXIT_OK
