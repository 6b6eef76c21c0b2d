r"""What drivers of PyMeasure, QCoDeS and others say to their instruments, and what those answer: facts, no code.

A turn is what the driver sends and what the instrument answers, None for no answer, both without terminators. The
turns of a conversation stand in the order in which the driver of the same name takes them in
``test_legacy_pymeasure_drivers``, ``test_legacy_qcodes_drivers`` and ``test_legacy_scripts``. They follow what the
drivers say of their instruments and, for PyMeasure, the conversations that it is tested with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs

Turn = tuple[str | bytes, str | bytes | None]


class Bare(bytes):
    """An answer that is not followed by a terminator."""


@attrs.frozen
class Conversation:
    """One driver's talk with one instrument.

    Attributes:
        turns: All of it, in order.
        write_end: What ends what the driver sends.
        read_end: What ends what the instrument answers.
        dialect: Which commands are answered, for a `VisaSessionConfig`.
        session_write_end: What ends a command of the others who use the session, if not what ends the driver's.
        session_read_end: What ends the answer that they get.
    """

    turns: list[Turn]
    write_end: bytes = b"\n"
    read_end: bytes = b"\n"
    dialect: str | Callable[[str], bool] = "scpi"
    session_write_end: bytes = attrs.field()
    session_read_end: bytes = attrs.field()

    @session_write_end.default
    def _write_end(self) -> bytes:
        return self.write_end or b"\n"

    @session_read_end.default
    def _read_end(self) -> bytes:
        return self.read_end or b"\n"

    def on_the_wire(self) -> list[tuple[bytes, bytes | None]]:
        """Return the turns as bytes, terminators and all."""
        return [(_bytes(sent) + self.write_end, self._whole(answer)) for sent, answer in self.turns]

    def _whole(self, answer: str | bytes | None) -> bytes | None:
        return answer if answer is None or isinstance(answer, Bare) else _bytes(answer) + self.read_end


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def has_question_mark(command: str) -> bool:
    """Return whether an instrument answers that allows ``SRAT ?``."""
    return "?" in command


def definite_block(data: bytes, digits: int = 1) -> bytes:
    """Return *data* as a definite block (IEEE 488.2-1992, 8.7.9), whose length is told by so many digits at least."""
    length = (b"%d" % len(data)).rjust(digits, b"0")
    return b"#%d%s%s" % (len(length), length, data)


RAMP = bytes(range(256))
"""Every byte, terminators among them."""

# --- PyMeasure -------------------------------------------------------------------------------------------------------

_PYMEASURE = {
    "Keithley2000": Conversation(
        [
            ("*IDN?", "KEITHLEY INSTRUMENTS INC.,MODEL 2000,1234567,A20 /A02"),
            (":CONF?", "VOLT:AC"),
            (":CONF:VOLT:DC", None),
            (":SENS:VOLT:RANG:AUTO 0;:SENS:VOLT:RANG 234", None),
            (":SENS:VOLT:RANG?", "234"),
            (":READ?", "+3.14150000E+00"),
            ("SYST:ERR?", '-113,"Undefined header"'),
            ("SYST:ERR?", '-222,"Parameter data out of range"'),
            ("SYST:ERR?", '0,"No error"'),
            ("*OPC?", "1"),
        ]
    ),
    "Keithley2400": Conversation(
        [
            (":FORMAT:ELEMENTS VOLTAGE, CURRENT, RESISTANCE, TIME, STATUS", None),
            ("OUTPUT 1", None),
            (":SENSE:RESISTANCE:MODE MAN", None),
            (":SENSE:FUNCTION:ALL", None),
            (":READ?", "+1.000206E+00,+1.000000E-04,+1.000236E+04,+7.282600E+01,+3.480000E+04"),
            (":MEASURE:CURRENT?", "+1.0E+00,+1.5E-04,+9.91E+37,+1.0E+00,+0.0E+00"),
            ("SYST:ERR?", '-113, "Undefined header"'),
            ("OUTPUT?", "1"),
        ]
    ),
    "Keithley2600": Conversation(
        [
            ("smua.source.func=1", None),
            ("smua.source.levelv=0.500000", None),
            ("smua.source.output=1", None),
            ("print(smua.measure.i())", "1.23457e-06"),
            ("print(smub.measure.v())", "-5.00000e-01"),
            ("print(errorqueue.next())", '-2.86000e+02\t"TSP Runtime error"\t2.00000e+01\t1.00000e+00'),
            ("print(errorqueue.next())", "0.00000e+00\tQueue Is Empty\t0.00000e+00\t1.00000e+00"),
        ],
        dialect="tsp",
    ),
    "KeysightDSOX1102G": Conversation(
        [
            (":timebase?", ":TIM:MODE MAIN;REF CENT;MAIN:RANG +1.00E-03;POS +0.0E+00"),
            (":waveform:source CHAN1", None),
            (":waveform:points:mode NORM", None),
            (":waveform:points 100", None),
            (":waveform:preamble?", "+4,+0,+4,+1,+5.0E-06,-2.5E-04,+0,+1.0E-02,+0.0E+00,+128"),
            (":waveform:format ASC", None),
            (":waveform:data?", definite_block(b" 1.00000e+00, 2.50000e+00,-3.00000e+00, 4.00000e+00", digits=8)),
            (":DISPlay:DATA? png, color", definite_block(RAMP, digits=8)),
            ("*OPC?", "1"),
        ]
    ),
    "LeCroyT3DSO1204": Conversation(
        [
            ("CHDR OFF", None),
            ("C1:VDIV 5.00E-02V", None),
            ("WFSU SP,1", None),
            ("WFSU NP,10", None),
            ("WFSU FP,0", None),
            ("SANU? C1", "7.00E+06"),
            ("WFSU NP,10", None),
            ("WFSU FP,0", None),
            ("C1:WF? DAT2", b"DAT2,#9000000010" + bytes([1, 2, 10, 13, 25, 50, 200, 255, 0, 128]) + b"\n"),
            ("WFSU?", "SP,1,NP,10,FP,0"),
            ("ACQW?", "SAMPLING"),
            ("SARA?", "1.00E+09"),
            ("SAST?", "Stop"),
            ("MSIZ?", "7M"),
            ("TDIV?", "5.00E-04"),
            ("TRDL?", "-0.00E+00"),
            ("SANU? C1", "7.00E+06"),
            ("C1:VDIV?", "5.00E-02"),
            ("C1:OFST?", "1.00E+00"),
            ("C1:UNIT?", "V"),
        ]
    ),
    "SR830": Conversation(
        [
            ("*IDN?", "Stanford_Research_Systems,SR830,s/n12345,ver1.07"),
            ("FREQ?", "121.98"),
            ("SENS14", None),
            ("SENS?", "14"),
            ("SNAP? 1,2", "-4.17234e-007,-5.9605e-007"),
            ("OEXP? 1", "9.7,1"),
            ("TRCB?1,0,4", struct.pack("<4f", 1.0, -2.5, 8.0, 1024.0)),
        ]
    ),
    "ITC503": Conversation(
        [
            ("V", "ITC503 Version 1.11 (c) OXFORD 1997"),
            ("C3", "C"),
            ("X", "X0A0C3S00H1L0"),
            ("R1", "R+4.213"),
            ("T10.000000", "T"),
            ("R0", "R+10.000"),
            ("Z5", "?Z5"),
        ],
        write_end=b"\r",
        read_end=b"\r",
        dialect="echo",
    ),
    "AH2500A": Conversation(
        [
            ("SHOW", "SAMPLE HOLD OFF"),
            ("SH V", "VOLTAGE HIGHEST 1.00    V"),
            ("V 0.7500", None),
            ("Q", "C= 1.234567    PF L= 0.000014    NS V= 0.750   V"),
            ("TRG", "C= 2.345678    PF L= 0.000015    NS V= 0.750   V"),
            ("Q", "EXCESS NOISE"),
        ],
        dialect="echo",
    ),
    "Ametek7270": Conversation(
        [
            ("ID", "7270\n"),
            ("VER", "2.06\n"),
            ("SEN 27", ""),
            ("SEN", "27\n"),
            ("TC 12", ""),
            ("XY.", "1.5E-03,-2.0E-06\n"),
            ("MAG.", "1.5E-03\n"),
            ("REFMODE 0", ""),
            ("OA. 0.5", ""),
        ],
        write_end=b"\0",
        read_end=b"\0",
        dialect="echo",
    ),
    "DCXS": Conversation(
        [
            ("?", "DCXS750-4"),
            ("C0097", None),
            ("b", "0097"),
            ("D0", None),
            ("c", "0"),
            ("A", None),
            ("a", "1"),
            ("d", "0095"),
            ("IALongNam", None),
            ("n", "ALongNam"),
        ],
        write_end=b"",
        read_end=b"",
        dialect="echo",
    ),
    "MKS937B": Conversation(
        [
            ("@253PR1?", "@253ACK1.10e-9"),
            ("@253T1?", "@253ACKG"),
            ("@253U!MICRON", "@253ACKMICRON"),
            ("@253U?", "@253ACKTORR"),
            ("@253SP10?", "@253ACK2.00E+0"),
            ("@253EN10!ENABLE", "@253NAK160"),
        ],
        write_end=b";FF",
        read_end=b";FF",
        dialect="echo",
    ),
    "SmartlineV1": Conversation(
        [
            ("001Te", "001TVSM207t"),
            ("001M^", "001M982122V"),
            ("001IZ", "001I1K"),
            ("001i0j", "001NO_DEF\\"),
            ("001Uf", "001U000000F"),
        ],
        write_end=b"\r",
        read_end=b"\r",
        dialect="echo",
    ),
    "TDK_Gen40_38": Conversation(
        [
            ("ADR 6", "OK"),
            ("RMT REM", "OK"),
            ("PV 20", "OK"),
            ("PV?", "20"),
            ("MC?", "1.2345"),
            ("DVC?", "5.9999,6.0000,010.02,010.00,7.500,00.00"),
            ("PC 10", "E04"),
        ],
        write_end=b"\r",
        read_end=b"\r",
        dialect="echo",
    ),
    "IBeamSmart": Conversation(
        [
            ("echo off", None),
            ("prom off", None),
            ("talk usual", "\r\n[OK]"),
            ("ver", "\r\niBPs-001A01-05\r\n[OK]"),
            ("sh pow", "\r\nPIC  = 000001 uW  \r\n[OK]"),
            ("la on", "\r\n[OK]"),
            ("sta la", "\r\nON\r\n[OK]"),
            ("en 3", "\r\n[OK]"),
        ],
        write_end=b"\r\n",
        read_end=b"\r\n",
        dialect="echo",
    ),
    "CNT91": Conversation(
        [
            ("*CLS", None),
            ("FORM ASC", None),
            (":CONF:ARR:FREQ:BTB 4,(@1)", None),
            ("INIT:CONT 0.0", None),
            (":ACQ:APER 0.01", None),
            (":INIT", None),
            ("*OPC?", "1"),
            (":FETC:ARR? 4", "1.00000010E+07,1.00000020E+07,1.00000000E+07,9.9999990E+06"),
            ("FORM:SMAX?", "10000"),
        ]
    ),
    "VellemanK8090": Conversation(
        [
            (bytes.fromhex("04710000008B0F"), bytes.fromhex("0471FF0A01810F")),
            (bytes.fromhex("0418000000E40F"), bytes.fromhex("0451011580150F")),
            (bytes.fromhex("0411050000E60F"), bytes.fromhex("0451010580250F")),
            (bytes.fromhex("04710000008B0F"), bytes.fromhex("0471FF0A01820F")),
        ],
        write_end=b"",
        read_end=b"",
        dialect="echo",
    ),
    "YAR": Conversation(
        [
            ("RNP", "RNP: 0.200"),
            ("RMP", "RMP: 10.5"),
            ("RDPT", "RDPT: 0.100"),
            ("STA", "STA: 1"),
            ("EMON", "EMON"),
            ("ROP", "ROP: 3.45"),
            ("ROP", "ROP: Off"),
        ],
        write_end=b"\r",
        read_end=b"\r",
        dialect="echo",
    ),
}

# --- QCoDeS ----------------------------------------------------------------------------------------------------------

_SWEEP = [
    "smua.measure.nplc = 1.000000000000",
    "smua.sense = 0",
    "smua.measure.count = 1",
    "smua.source.func = 1",
    "smua.source.output = 1",
    "startX = 0.000000000000",
    "dX = 0.500000000000",
    "smua.nvbuffer1.clear()",
    "smua.nvbuffer1.appendmode = 1",
    "for index = 1, 3 do",
    "  target = startX + (index-1)*dX",
    "  smua.source.levelv = target",
    "  smua.measure.i(smua.nvbuffer1)",
    "end",
    "format.data = format.REAL32",
    "format.byteorder = format.LITTLEENDIAN",
    "printbuffer(1, 3, smua.nvbuffer1.readings)",
]
"""A whole program as one command."""
SWEPT = struct.pack("<f", 1.5) + b"\n\n\nA" + struct.pack("<f", -2.5e-6)
"""Its values: with line feeds inside, which are terminators to whoever does not count."""

_QCODES = {
    "Agilent34401A": Conversation(
        [
            ("*IDN?", "HEWLETT-PACKARD,34401A,0,11-5-2"),
            ("*IDN?", "HEWLETT-PACKARD,34401A,0,11-5-2"),
            ("VOLT:NPLC 10.000000", None),
            ("VOLT:DC:RES?", "+1.00000000E-05"),
            ("READ?", "+1.23456700E+00"),
            ("SENS:VOLT:DC:RANG?", "+1.00000000E+01"),
            ("DISP:TEXT?", '"READY?"'),
        ]
    ),
    "AimTTiPL601": Conversation(
        [
            ("*IDN?", "THURLBY THANDAR, PL601-P, 490296, 3.02-4.06"),
            ("*IDN?", "THURLBY THANDAR, PL601-P, 490296, 3.02-4.06"),
            ("V1 12.5", None),
            ("V1?", "V1 12.500"),
            ("I1?", "I1 1.5000"),
            ("OP1 1", None),
            ("OP1?", "1"),
            ("IRANGE1?", "2"),
            ("INCV1", None),
            ("V1?", "V1 12.600"),
        ],
        read_end=b"\r\n",
    ),
    "Keithley2602B": Conversation(
        [
            ("print(localnode.model)", "2602B"),
            ("*IDN?", "Keithley Instruments Inc., Model 2602B, 1234567, 3.2.1"),
            ("smua.source.output=1", None),
            ("smua.source.levelv=0.250000000000", None),
            ("print(smua.measure.v(), status.measurement.instrument.smua.condition)", "2.50012e-01\t0.00000e+00"),
            ("print(smub.measure.i(), status.measurement.instrument.smub.condition)", "-1.00000e-09\t0.00000e+00"),
            ("print(smua.source.output)", "1.00000e+00"),
            ("print(smua.measure.nplc)", "1.00000e+00"),
            ("print(smua.measure.nplc)", "1.00000e+00"),
            ("print(localnode.linefreq)", "50"),
            ("\r\n".join(["loadandrunscript", *_SWEEP, "endscript"]), b"#0" + SWEPT),
            ("print(smua.source.output)", "0.00000e+00"),
        ],
        dialect="tsp",
    ),
    "LakeshoreModel336": Conversation(
        [
            ("*IDN?", "LSCI,MODEL336,LSA12AB/1234567,2.9"),
            ("KRDG? A", "+077.350"),
            ("KRDG? B", "+004.213"),
            ("RDGST? A", "032"),
            ("SETP 1, 4.2", None),
            ("SETP? 1", "+4.2000E+00"),
        ],
        write_end=b"\r\n",
        read_end=b"\r\n",
    ),
    "OxfordMercuryiPS": Conversation(
        [
            ("*IDN?", "IDN:OXFORD INSTRUMENTS:MERCURY IPS:144650020:2.5.02.000"),
            ("READ:DEV:GRPX:PSU:SIG:FLD", "STAT:DEV:GRPX:PSU:SIG:FLD:0.0000T"),
            ("READ:DEV:GRPY:PSU:SIG:FLD", "STAT:DEV:GRPY:PSU:SIG:FLD:12.5000mT"),
            ("READ:DEV:GRPZ:PSU:SIG:FLD", "STAT:DEV:GRPZ:PSU:SIG:FLD:-1.2500T"),
            ("*IDN?", "IDN:OXFORD INSTRUMENTS:MERCURY IPS:144650020:2.5.02.000"),
            ("READ:DEV:GRPX:PSU:SIG:FLD", "STAT:DEV:GRPX:PSU:SIG:FLD:0.0000T"),
            ("SET:DEV:GRPZ:PSU:SIG:FSET:0.5", "STAT:SET:DEV:GRPZ:PSU:SIG:FSET:0.5:VALID"),
            ("READ:DEV:GRPZ:PSU:SIG:FSET", "STAT:DEV:GRPZ:PSU:SIG:FSET:0.5000T"),
            ("READ:DEV:GRPY:PSU:SIG:FLD", "STAT:DEV:GRPY:PSU:SIG:FLD:12.5000mT"),
            ("READ:DEV:GRPX:PSU:ACTN", "STAT:DEV:GRPX:PSU:ACTN:HOLD"),
        ],
        dialect="echo",
    ),
    "RigolDS1074Z": Conversation(
        [
            ("*IDN?", "RIGOL TECHNOLOGIES,DS1074Z,DS1ZA000000001,00.04.04"),
            ("WAVeform:YORigin?", "0"),
            (":WAVeform:YINCrement?", "2.0E-2"),
            (":WAVeform:YREFerence?", "100"),
            (":WAVeform:FORMat WORD", None),
            (":WAVeform:SOURce CHAN1", None),
            ("WAV:DATA?", Bare(definite_block(struct.pack("<4h", 100, 10, 2570, -13)))),
            (":CHANnel1:SCALe?", "5.0E-1"),
            (":TRIGger:EDGE:SOURce CHAN2", None),
            (":TRIGger:EDGE:SOURce?", "CHAN2"),
        ]
    ),
    "SR830 of QCoDeS": Conversation(
        [
            ("SRAT ?", "13"),
            ("DDEF ? 1", "1,0"),
            ("DDEF ? 1", "1,0"),
            ("DDEF ? 2", "1,0"),
            ("DDEF ? 2", "1,0"),
            ("ISRC?", "0"),
            ("*IDN?", "Stanford_Research_Systems,SR830,s/n12345,ver1.07"),
            ("FREQ 137.5000", None),
            ("FREQ?", "137.5"),
            ("OFLT 8", None),
            ("SNAP? 1,2,3", "1.5e-06,2.5e-06,2.915e-06"),
            ("OUTP? 1", "1.5e-06"),
            ("ISRC?", "0"),
            ("SENS 20", None),
        ],
        dialect=has_question_mark,
    ),
    "YokogawaGS200": Conversation(
        [
            *[(":SOUR:FUNC?", "VOLT")] * 6,
            ("*OPT?", "/MON"),
            (":SOUR:FUNC?", "VOLT"),
            ("*IDN?", "YOKOGAWA,GS210,91T926457,2.02"),
            (":SOUR:FUNC?", "VOLT"),
            (":SOUR:RANG 1.0", None),
            (":SOUR:RANG?", "1.0E+0"),
            (":SOUR:RANG?", "1.0E+0"),
            (":SOUR:LEV 2.50000e-01", None),
            (":SOUR:LEV?", "2.5E-1"),
            ("OUTPUT 1", None),
            ("OUTPUT?", "1"),
            (":SENS?", "1"),
            ("SYST:LFR?", "50"),
            (":SYSTem:ERRor?", '-222,"Data out of range"'),
            (":SYSTem:ERRor?", '0,"No error"'),
        ]
    ),
}

# --- others ----------------------------------------------------------------------------------------------------------

_OTHERS = {
    "raw PyVISA script": Conversation(
        [
            ("*IDN?", "ACME,SCOPE,1,2.0"),
            ("CURV?", definite_block(RAMP)),
            ("CURV:WORD?", definite_block(struct.pack(">3h", 2570, -1, 10))),
            ("CURV:ASC?", "1.5,-2.5,3.5E3"),
            ("CURV:HEX?", "ff,0a,10"),
            ("LIST 1.500000,2.500000", None),
            (b"ARB " + definite_block(b"\x01\x02\x03\x0a\x0d\xff"), None),
            ("LIST?;*OPC?", "1.5,2.5;1"),
            ("STAT?", "0123456789"),
            ("STAT?", "0123456789"),
            ("NEVER?", None),
            ("*OPC?", "1"),
        ]
    ),
    "easy-scpi": Conversation(
        [
            ("*IDN?", "ACME,SOURCE,1,2.0"),
            ("SOURCE:VOLTAGE 1.5", None),
            ("SOURCE:VOLTAGE?", "1.5"),
            ("MEASURE:VOLTAGE? 2", "1.4999"),
            ("READ?", "+1.500000E+00"),
            ("INIT", None),
            ("*IDN?", "ACME,SOURCE,1,2.0"),
        ]
    ),
}

CONVERSATIONS: dict[str, Conversation] = _PYMEASURE | _QCODES | _OTHERS
