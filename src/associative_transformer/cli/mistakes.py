"""One sentence about what is wrong with a command line, in place of the parser's box.

tyro reports a rejected command line as an event of its module `_errors`, which is not public, and
then prints a box. An event of an unknown form is described by the text of the box.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

import tyro

KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}
NUM_SIMILAR = 3  # suggestions for a misspelled option
LEAST_SIMILARITY, MARGIN = 0.75, 0.1  # of a suggestion, and less than the best one's
OPTION = re.compile(r"(?<![\w\-])--[a-z][a-z0-9.\-]*[a-z0-9]")
IN_MESSAGE = re.compile(r"(?<![\w.'\-/])[a-z]\w*(?:\.\w+)*(?![\w'(/])")
"""A word of a message that may be the name of a field, such as num_heads or train.lr."""


@dataclass
class Refusal:
    """What tyro reports about a command line that it rejects."""

    box: io.StringIO = field(default_factory=io.StringIO)
    """The text that tyro prints."""
    events: list[Any] = field(default_factory=list)
    """The event, if this version of tyro reports one."""


class InstantiationFailure(NamedTuple):
    """An invalid combination of values, as older versions of tyro raise it."""

    message: str
    argument: None = None


@contextmanager
def watched() -> Iterator[Refusal]:
    """Collect what tyro reports about a command line instead of printing it."""
    refusal = Refusal()
    hook = getattr(getattr(tyro, "_errors", None), "on_parse_error", None)
    with redirect_stderr(refusal.box), hook(refusal.events.append) if hook else nullcontext():
        yield refusal


@dataclass(frozen=True)
class CommandLine:
    """The arguments of a command, and the options that the command has."""

    command: str
    """The command, such as `train cifar10-ait-tiny`."""
    arguments: list[str]
    """The arguments that follow it."""
    parse: Callable[[list[str]], object]
    """The parser of the command."""

    @cached_property
    def known(self) -> list[str]:
        """All options of the command, as its help lists them."""
        text = io.StringIO()
        words = [word for word in self.arguments[:1] if not word.startswith("-")]
        for before in (words, []):  # the first argument may choose other options
            with redirect_stdout(text), redirect_stderr(io.StringIO()), suppress(SystemExit):
                self.parse([*before, "--help"])
            if text.getvalue():
                break
        return list(dict.fromkeys(OPTION.findall(text.getvalue())))

    @property
    def given(self) -> dict[str, str]:
        """The options on the command line, each with its values as one text."""
        values: dict[str, list[str]] = {}
        current: list[str] = []
        for word in self.arguments:
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                current = values.setdefault(name.replace("_", "-"), [])
                word = value if equals else ""
            current += [word] if word else []
        return {name: " ".join(words) for name, words in values.items()}

    def describe(self, refusal: Refusal) -> str:
        """Return one sentence that says what is wrong and how to correct it."""
        text = _flatten(refusal.box.getvalue())
        for event in refusal.events:
            describe = _DESCRIBE.get(type(event).__name__)
            with suppress(AttributeError, TypeError):  # another version of tyro
                if describe is not None:
                    return describe(self, event, text)
        return f"{text}; {self.help_hint}"

    @property
    def help_hint(self) -> str:
        """The command that lists the arguments."""
        return f"see `ait {self.command} --help`"

    def unrecognized(self, tokens: list[str]) -> str:
        """Describe arguments that the command does not have."""
        options = [token for token in tokens if re.match(r"-+[a-zA-Z]", token)]
        if options:
            name = options[0].partition("=")[0]
            similar = find_similar(name.replace("_", "-"), self.known)
            hint = self.help_hint
            if similar:
                hint = f"did you mean {join_or(similar)}? {hint.capitalize()}"
            return f"`ait {self.command}` has no option {name}: {hint}"
        places = (
            i
            for i, word in enumerate(self.arguments)
            if tokens[0] in (word, word.partition("=")[2])
        )
        end = next(places, 0)
        before = [*self.arguments[:end], *self.arguments[end : end + 1]]
        before[-1:] = [word.partition("=")[0] for word in before[-1:] if word.startswith("--")]
        flags = [word for word in before if word.startswith("--")]
        last = flags[-1] if flags else ""
        on, off = last.replace("no-", "").replace("_", "-"), _negate(last.replace("no-", ""))
        if on in self.known and off in self.known:
            return f"{last} takes no value, not {tokens[0]!r}: pass {on} or {off}"
        where = f" after {' '.join(before[before.index(last) :]).strip()}" if last else ""
        return f"unexpected argument {tokens[0]!r}{where}: {self.help_hint}"

    def name_options(self, message: str, prefix: str) -> str:
        """Return the message with names of fields replaced by options.

        A message that names no field starts with the options that may have caused it.
        """

        found: list[str] = []

        def replace(match: re.Match[str]) -> str:
            word = match[0]
            is_name = match.start() == 0 or "_" in word or "." in word
            option = self._find_option(word, prefix)
            if option is None or not (is_name or (option in self.given and option not in found)):
                return word
            found.append(option)
            return option

        named = IN_MESSAGE.sub(replace, message)
        if "--" in named or not self.given:
            return named
        section = prefix.partition(".")[2].replace("_", "-")
        culprits = [name for name in self.given if name.startswith(f"--{section}")]
        culprits = culprits or list(self.given)
        return f"{', '.join(f'{name} {self.given[name]}'.strip() for name in culprits)}: {named}"

    def _find_option(self, word: str, prefix: str) -> str | None:
        """Return the option of a field that the configuration at a dotted prefix names."""
        name = word.replace("_", "-")
        parts = prefix.replace("_", "-").split(".")
        ends = range(len(parts), -1, -1)
        places = [parts[i:end] for end in ends for i in range(end + 1)]
        exact = ["--" + ".".join([*place, name]) for place in places]
        loose = [given for given in self.given if given.endswith(f".{name}")]
        return next((option for option in [*exact, *loose] if option in self.known), None)


def find_similar(name: str, names: list[str]) -> list[str]:
    """Return the names that are most similar to one that does not exist, or none."""

    def similarity(other: str) -> float:
        last, other_last = (re.split(r"\.|--", x)[-1] for x in (name, other))
        whole = SequenceMatcher(None, name, other).ratio()
        return max(whole, SequenceMatcher(None, last, other_last).ratio() - 0.01)

    close = [(similarity(other), other) for other in names]
    least = max([LEAST_SIMILARITY, *(score - MARGIN for score, _ in close)])
    best = sorted((pair for pair in close if pair[0] >= least), reverse=True)
    return [other for _, other in best[:NUM_SIMILAR]]


def join_or(names: list[str]) -> str:
    """Return the names as a text: `a, b or c`."""
    return " or ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def _flatten(box: str) -> str:
    """Return the text of a box without its frame, up to the help, in one line."""
    text = box.partition("For full helptext")[0].partition("Argument helptext")[0]
    return re.sub(r"[\s─│╭╮╰╯]+", " ", text).strip(" .:")


def _negate(option: str) -> str:
    *parents, last = option.removeprefix("--").replace("_", "-").split(".")
    return "--" + ".".join([*parents, f"no-{last}"])


def _name(argument: Any) -> str:  # noqa: ANN401  (a class of tyro that is not public)
    """Return how users know an argument: its option, or RUN."""
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return str(argument.lowered.name_or_flags[0])


def _kind(argument: Any) -> str:  # noqa: ANN401
    """Return what an argument takes, as in its help but in words: None or a whole number."""
    metavar = str(argument.lowered.metavar)
    rest = metavar.removeprefix("{None}|")
    if re.fullmatch(r"\{[^{}]*\}", rest):
        return join_or([*["None"] * (rest != metavar), *rest[1:-1].split(",")])
    return "None or " * (rest != metavar) + KINDS.get(rest, rest)


def _describe_missing(line: CommandLine, event: Any, text: str) -> str:  # noqa: ANN401
    if event.unrecognized_tokens:
        return line.unrecognized(event.unrecognized_tokens)
    argument = event.missing_arguments[0].arg
    return f"`ait {line.command}` needs {_name(argument)}: {line.help_hint}"


def _describe_bad_value(line: CommandLine, event: Any, text: str) -> str:  # noqa: ANN401
    name = _name(event.argument)
    value = line.given.get(name)
    given = f"not {value!r}" if value else "but no value follows"
    return f"{name} takes {_kind(event.argument)}, {given}"


def _describe_choice(line: CommandLine, event: Any, text: str) -> str:  # noqa: ANN401
    choices = list(map(str, event.choices))
    similar = get_close_matches(event.value, choices, n=1)
    hint = f": did you mean {similar[0]}?" if similar else ""
    return f"{_name(event.argument)} must be {join_or(choices)}, not {event.value!r}{hint}"


def _describe_failure(line: CommandLine, event: Any, text: str) -> str:  # noqa: ANN401
    if event.argument is not None:
        return _describe_bad_value(line, event, text)
    prefix = re.search(r"Error parsing (\S+):", text)
    return line.name_options(str(event.message), prefix[1] if prefix else "")


def _describe_subcommand(line: CommandLine, event: Any, text: str) -> str:  # noqa: ANN401
    names = join_or(list(event.subcommand_spec.parser_from_name))
    return f"`ait {line.command}` needs one of {names} as its first argument"


_DESCRIBE: dict[str, Callable[[CommandLine, Any, str], str]] = {
    "MissingArgs": _describe_missing,
    "MissingSubcommand": _describe_subcommand,
    "BadValue": _describe_bad_value,
    "InvalidChoice": _describe_choice,
    "UnrecognizedArgs": lambda line, event, _: line.unrecognized(event.tokens),
    "InstantiationFailure": _describe_failure,
}
"""How to describe each kind of event."""
