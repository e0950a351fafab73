"""``jsonckpt completion``: print a script that completes commands in a shell."""

from __future__ import annotations

import argparse

from ..terminal.console import EXIT_OK, say
from ..terminal.options import Commands

#: The command that the scripts call.
HIDDEN = "_complete"
SCRIPTS = {
    "bash": """\
# jsonckpt in bash. Put this line into ~/.bashrc:  eval "$(jsonckpt completion bash)"
_jsonckpt() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$(printf '%q' "${line%%$'\\t'*}")")
    done < <("${COMP_WORDS[0]}" _complete "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _jsonckpt jsonckpt
""",
    "zsh": """\
#compdef jsonckpt
# jsonckpt in zsh. Put this line into ~/.zshrc, after compinit:  eval "$(jsonckpt completion zsh)"
_jsonckpt() {
    local -a lines found
    lines=("${(@f)$("${words[1]}" _complete $((CURRENT - 1)) "${words[@]}" 2>/dev/null)}")
    found=("${(@)lines%%$'\\t'*}")
    if [[ -n ${found[1]} ]]; then compadd -a found; else _files; fi
}
compdef _jsonckpt jsonckpt
""",
    "fish": """\
# jsonckpt in fish:  jsonckpt completion fish > ~/.config/fish/completions/jsonckpt.fish
function __jsonckpt_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] _complete (math (count $words) - 1) $words 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c jsonckpt -f -a '(__jsonckpt_complete)'
""",
}


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in bash, zsh or fish",
        description="Print a script that completes commands, options, paths and the names of "
        'tensors. For bash: eval "$(jsonckpt completion bash)" in ~/.bashrc.',
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS), metavar="SHELL", help="bash, zsh or fish")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    say(SCRIPTS[args.shell], end="")
    return EXIT_OK
