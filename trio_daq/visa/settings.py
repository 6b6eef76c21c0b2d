"""What to know about a VISA session before opening it.

Settings are frozen and checked when they are built. They open nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from trio_daq.sharing import positive_int, positive_seconds


def _resource(_: Any, __: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or "::" not in value:
        raise ValueError(
            f"resource must be a VISA resource name, such as 'TCPIP0::192.168.1.100::INSTR', not {value!r}"
        )


def _text(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{attribute.name} must be text of at least one character, such as '\\n', not {value!r}")


@attrs.frozen(kw_only=True)
class VisaSessionConfig:
    r"""Settings of one VISA session.

    Attributes:
        resource: VISA resource name, for example ``TCPIP0::192.168.1.100::INSTR`` or ``TCPIP::host::5025::SOCKET``.
        timeout: Seconds for each command that names no deadline of its own; also for opening.
        backend: PyVISA library: ``"@py"`` (pyvisa-py), ``"@ivi"``, ``"@sim"`` or a path, as in
            ``pyvisa.ResourceManager(backend)``.
        transport: ``"pyvisa"`` is the one there is.
        dialect: ``"scpi"``: a command whose header ends in ``?`` is answered, any other is not.
        write_termination: What ends a command.
        read_termination: What ends a reply.
        queue_size: Commands that may wait.
    """

    resource: str = attrs.field(validator=_resource)
    timeout: float = attrs.field(default=2.0, validator=positive_seconds)
    backend: str = attrs.field(default="@py", validator=_text)
    transport: Literal["pyvisa"] = attrs.field(default="pyvisa", validator=attrs.validators.in_(("pyvisa",)))
    dialect: Literal["scpi"] = attrs.field(default="scpi", validator=attrs.validators.in_(("scpi",)))
    write_termination: str = attrs.field(default="\n", validator=_text)
    read_termination: str = attrs.field(default="\n", validator=_text)
    queue_size: int = attrs.field(default=100, validator=positive_int)
