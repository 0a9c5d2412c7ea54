"""``completion bash``, ``zsh`` and ``fish``: scripts made of what the parser knows."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qis_edge.cli.program import OK

MODULES = {"qis-edge": "qis_edge.cli", "qis-gateway": "gateway.cli"}
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a verb.

    :param value: whether one follows; ``path``: it is a file or a folder.
    """

    name: str
    help: str
    value: bool
    path: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A verb, or a group of verbs.

    :param words: as typed: ``("radio", "ping")``.
    :param verbs: of a group, each with its help.
    :param positional: what an argument without a name may be; ``None``: there is none.
    """

    words: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    positional: Option | None


def nodes(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[Node]:
    """Everything that can be typed, from the command itself on."""
    verbs: list[tuple[str, str]] = []
    options: list[Option] = []
    positional: Option | None = None
    below: list[Node] = []
    for action in parser._actions:  # argparse tells nobody else
        if isinstance(action, argparse._SubParsersAction):
            verbs = [(one.dest, one.help or "") for one in action._choices_actions]
            for name, child in action.choices.items():
                below += nodes(child, (*words, name))
        elif action.option_strings:
            options.append(_option(action, max(action.option_strings, key=len)))
        else:
            positional = positional or _option(action, "")
    yield Node(words, tuple(verbs), tuple(options), positional)
    yield from below


def _option(action: argparse.Action, name: str) -> Option:
    choices = tuple(map(str, action.choices or ()))
    text = (action.help or "").replace("%(default)s", str(action.default))
    return Option(name, " ".join(text.split()), action.nargs != 0, action.type is Path, choices)


def completion(args: argparse.Namespace) -> int:
    """Print a script."""
    parser = importlib.import_module(MODULES[args.program]).parser()
    print(script(args.shell, args.program, list(nodes(parser))), end="")
    return OK


def script(shell: str, program: str, tree: list[Node]) -> str:
    """The completion script of a shell."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    head = f"# Completion of {program} for {shell}, made by: {program} completion {shell}"
    lines = list(write(program, tree))
    if shell == "zsh":  # what zsh looks for must come first
        return "\n".join([lines[0], head, *lines[1:]]) + "\n"
    return "\n".join([head, *lines]) + "\n"


def _name(program: str) -> str:
    return "_" + program.replace("-", "_")


# --- bash --------------------------------------------------------------------------------


def _bash(program: str, tree: list[Node]) -> Iterator[str]:
    yield f"{_name(program)}() {{"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at="" word'
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield '        case "$at/$word" in'
    known = "|".join(_quoted_path(node) for node in tree if node.words)
    yield f"            {known}) at=$at/$word ;;"
    yield "        esac"
    yield "    done"
    yield "    COMPREPLY=()"
    yield '    case "$at $prev" in'
    for node in tree:
        for option in node.options:
            if option.value:
                yield f"        {_quoted(_path(node) + ' ' + option.name)})"
                yield f"            {_bash_values(option)}; return ;;"
    yield "    esac"
    yield '    case "$at" in'
    for node in tree:
        words = [name for name, _ in node.verbs] + [one.name for one in node.options]
        yield f"        {_quoted(_path(node))})"
        yield f'            COMPREPLY=($(compgen -W {_quoted(" ".join(words))} -- "$cur"))'
        if node.positional is not None and not node.verbs:
            yield f"            [[ $cur == -* ]] || {{ {_bash_values(node.positional)}; }}"
        yield "            ;;"
    yield "    esac"
    yield "}"
    yield f"complete -o filenames -F {_name(program)} {program}"


def _bash_values(option: Option) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W {_quoted(" ".join(option.choices))} -- "$cur"))'
    return 'COMPREPLY=($(compgen -f -- "$cur"))' if option.path else ":"


def _path(node: Node) -> str:
    return "".join(f"/{word}" for word in node.words)


def _quoted_path(node: Node) -> str:
    return _quoted(_path(node))


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else '""'


# --- zsh ---------------------------------------------------------------------------------


def _zsh(program: str, tree: list[Node]) -> Iterator[str]:
    yield f"#compdef {program}"
    yield f"{_name(program)}() {{"
    yield '    local at="" word i'
    yield "    local -a verbs options"
    yield "    for ((i = 2; i < CURRENT; i++)); do"
    yield '        case "$at/${words[i]}" in'
    known = "|".join(_quoted_path(node) for node in tree if node.words)
    yield f'            {known}) at="$at/${{words[i]}}" ;;'
    yield "        esac"
    yield "    done"
    yield '    case "$at ${words[CURRENT-1]}" in'
    for node in tree:
        for option in node.options:
            if option.value:
                values = _zsh_values(option)
                yield f"        {_quoted(_path(node) + ' ' + option.name)}) {values}; return ;;"
    yield "    esac"
    yield '    case "$at" in'
    for node in tree:
        yield f"        {_quoted(_path(node))})"
        verbs = " ".join(_quoted(f"{name}:{_zsh_text(text)}") for name, text in node.verbs)
        options = " ".join(_quoted(f"{one.name}:{_zsh_text(one.help)}") for one in node.options)
        yield f"            verbs=({verbs})"
        yield f"            options=({options})"
        if node.positional is not None and not node.verbs:
            yield "            if [[ ${words[CURRENT]} != -* ]]; then"
            yield f"                {_zsh_values(node.positional)}"
            yield "            fi"
        yield "            ;;"
    yield "    esac"
    yield "    if (( ${#verbs} )); then _describe -t commands 'verb' verbs; fi"
    yield "    if [[ ${words[CURRENT]} == -* || ${#verbs} == 0 ]]; then"
    yield "        _describe -o 'option' options"
    yield "    fi"
    yield "}"
    yield f'if [[ "$funcstack[1]" == _{program} ]]; then'
    yield f'    {_name(program)} "$@"'
    yield "else"
    yield f"    compdef {_name(program)} {program}"
    yield "fi"


def _zsh_values(option: Option) -> str:
    if option.choices:
        return f"compadd {' '.join(map(_quoted, option.choices))}"
    return "_files" if option.path else ":"


def _zsh_text(text: str) -> str:
    return text.replace(":", "\\:")


# --- fish --------------------------------------------------------------------------------


def _fish(program: str, tree: list[Node]) -> Iterator[str]:
    test = f"_{_name(program)}_at"
    yield f"function {test}"
    yield "    set -l at"
    yield "    for word in (commandline -opc)[2..-1]"
    yield '        switch "$at/$word"'
    known = " ".join(_quoted_path(node) for node in tree if node.words)
    yield f"            case {known}"
    yield '                set at "$at/$word"'
    yield "        end"
    yield "    end"
    yield '    test "$at" = "$argv[1]"'
    yield "end"
    yield f"complete -c {program} -f"
    for node in tree:
        begin = f"complete -c {program} -n {_fish_quoted(f'{test} {_fish_quoted(_path(node))}')}"
        for name, text in node.verbs:
            yield f"{begin} -a {name} -d {_fish_quoted(text)}"
        for option in node.options:
            values = ""
            if option.value:
                words = _fish_quoted(" ".join(option.choices))
                values = f" -x -a {words}" if option.choices else " -x"
                values = " -r -F" if option.path else values
            long = re.sub(r"^--", "", option.name)
            yield f"{begin} -l {long}{values} -d {_fish_quoted(option.help)}"
        if node.positional is not None and node.positional.choices:
            yield f"{begin} -a {_fish_quoted(' '.join(node.positional.choices))}"
        elif node.positional is not None and node.positional.path:
            yield f"{begin} -F"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
