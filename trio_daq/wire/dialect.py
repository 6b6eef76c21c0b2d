"""Which commands an instrument answers, by the language it speaks.

A wrong guess is dear: to wait for the reply of a command that has none costs a timeout, and a reply that nobody waits
for is taken for that of the next command. So the rules look at the grammar, not at the last character. They know no
one instrument and cannot know what an instrument was taught: a TSP function that prints when it is called, a firmware
that acknowledges. For those there is a rule of one's own, and the verbs that say what they expect.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from trio_daq.wire.scpi import expects_reply

ReplyRule = Callable[[str], bool]

_OPAQUE_IN_LUA = re.compile(
    r"""
    --\[(?P<comment>=*)\[ .*? (?: \](?P=comment)\] | \Z )   # --[[ … ]], over several lines
    | --[^\n]*
    | \[(?P<string>=*)\[ .*? (?: \](?P=string)\] | \Z )     # [[ … ]], a string
    | "(?: \\. | [^"\\] )*"?
    | '(?: \\. | [^'\\] )*'?
    """,
    re.VERBOSE | re.DOTALL,
)
_PRINTS = re.compile(r"(?<![\w.:])print(?:buffer|number)?\s*[(\"{]")
"""A call; with one string or table as its argument Lua needs no parentheses."""


def reply_rule(dialect: str | ReplyRule) -> ReplyRule:
    """Return a function that is told one command and returns whether it is answered.

    Args:
        dialect: ``"scpi"``: commands with a header that ends in ``?``, see `expects_reply`. ``"tsp"`` (Keithley): those
            that call ``print``, ``printbuffer`` or ``printnumber``, and IEEE 488.2 common queries such as ``*IDN?``.
            ``"echo"``: all, as with the Oxford ITC503. Or a function of one's own.

    Raises:
        ValueError: If there is no dialect of that name.
        TypeError: If *dialect* is neither text nor a function. The returned rule raises it if the function of one's own
            returned something other than True or False.

    Example:
        >>> answered = reply_rule("tsp")
        >>> answered("print(smua.measure.v())"), answered("smua.source.levelv = 1 -- print()")
        (True, False)
        >>> reply_rule(lambda command: command.startswith("OUTP"))("OUTPIDEN")
        True
    """
    if isinstance(dialect, str):
        if dialect in _RULES:
            return _RULES[dialect]
        near = difflib.get_close_matches(dialect[:40].casefold(), _RULES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no dialect {dialect!r}; known: {', '.join(_RULES)}, or a function.{hint}")
    if not callable(dialect):
        raise TypeError(f"dialect is the name of one or a function, not {dialect!r}")
    own = dialect

    def checked(command: str) -> bool:
        answered: object = own(command)
        if not isinstance(answered, bool):
            raise TypeError(f"the dialect {own!r} must return True or False; for {command!r} it returned {answered!r}")
        return answered

    return checked


def _prints(command: str) -> bool:
    if command.lstrip().startswith("*"):
        return expects_reply(command)
    code = _OPAQUE_IN_LUA.sub(lambda found: " " if found[0].startswith("--") else '""', command)
    return _PRINTS.search(code) is not None


def _always(_: str) -> bool:
    return True


_RULES: dict[str, ReplyRule] = {"scpi": expects_reply, "tsp": _prints, "echo": _always}
