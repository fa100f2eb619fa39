"""HL7 v2 messages: read what a segment says, and answer with an acknowledgement.

https://www.hl7.org/implement/standards/product_brief.cfm?product_id=185 (chapter 2). The package `hl7` takes messages apart and puts
acknowledgements together; it knows encoding characters and escapes. A field that is empty says nothing; one that is "" says: delete.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import hl7

from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.outcome import FhirError, NotSupported

LIMIT = 1024 * 1024  # bytes of one message
DELETE = '""'
_CHARSETS = {
    "": "utf-8",
    "ASCII": "ascii",
    "UNICODE UTF-8": "utf-8",
    **{f"8859/{n}": f"iso8859-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)},
}
_TIME = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:\.\d{1,4})?([+-]\d{4})?")
_PLACE = re.compile(r"[A-Z][A-Z0-9]{2}(-\d{1,2})?")

Component = list[str]  # its subcomponents
Repetition = list[Component]
Field = list[Repetition]


class MessageWrong(FhirError):
    """A message cannot be taken; the text names the field and the remedy, and nothing of what it says. `error` is of HL7 table 0357."""

    status, code = 422, "value"

    def __init__(self, text: str, place: str = "", error: str = "207") -> None:
        super().__init__(text, place or None)
        self.place, self.error = place, error


class EventNotSupported(NotSupported):
    """A kind of message that the hub does not work with."""


@dataclass(frozen=True, slots=True)
class Sending:
    """Whose messages are this partner's: MSH-3 and MSH-4; None: any."""

    application: str | None
    facility: str | None


@dataclass(frozen=True, slots=True)
class Hl7v2:
    """The `hl7v2` part of a partner.yaml."""

    sending: tuple[Sending, ...] = ()


def read(keys: Keys) -> Hl7v2:
    """Read that part."""
    sending = keys.each("sending", "a list of {application, facility}", _sending, [])
    keys.done()
    return Hl7v2(sending)


def _sending(keys: Keys) -> Sending:
    one = Sending(
        keys.text("application", "MSH-3 of its messages", default=None),
        keys.text("facility", "MSH-4 of its messages", default=None),
    )
    if one == Sending(None, None):
        keys.wrong("", "must give application or facility")
    keys.done()
    return one


class Message:
    """A message, of which only the segments that are wanted are taken apart."""

    def __init__(self, raw: bytes, wanted: Collection[str] = ()) -> None:
        """Raises MessageWrong."""
        text = _decoded(raw)
        lines = [line for line in re.split(r"\r\n|\r|\n", text.strip("\r\n \x00")) if line.strip()]
        if not lines or not re.match(r"MSH[^A-Za-z0-9\s].{3,}", lines[0]):
            raise MessageWrong("The message does not begin with a segment MSH", "MSH", "100")
        kept = [line for line in lines if line[:3] in wanted or line[:3] == "MSH"]
        try:
            self._parsed = hl7.parse("\r".join(kept))
            self.segments = [(str(one[0]), one) for one in self._parsed]
        except Exception:  # the package raises whatever it stumbles over, with texts that quote the message
            raise MessageWrong(
                "The message cannot be taken apart: its encoding characters or segments are wrong", "MSH-2", "102"
            ) from None
        self.msh = self.segments[0][1]
        self.control_id, self.event = self.text("MSH", 10), self.text("MSH", 9, 2)
        self.kind = self.text("MSH", 9)

    def all(self, name: str) -> list[Any]:
        """The segments of a name."""
        return [segment for kind, segment in self.segments if kind == name]

    def field(self, segment: Any, number: int) -> Field:
        """The repetitions of a field; none when it is absent or empty."""
        if number >= len(segment):
            return []
        found = segment[number]
        repetitions = found if isinstance(found, hl7.Field) else [found]
        read = [self._repetition(one) for one in repetitions]
        return [one for one in read if any(sub for component in one for sub in component)]

    def text(self, name: str, number: int, component: int = 1) -> str:
        """A component of the first repetition of the first such segment; "" when there is none."""
        for segment in self.all(name)[:1]:
            for repetition in self.field(segment, number)[:1]:
                return part(repetition, component)
        return ""

    def _repetition(self, found: Any) -> Repetition:
        components = found if isinstance(found, hl7.Repetition) else [found]
        return [[self._plain(sub) for sub in (one if isinstance(one, hl7.Component) else [one])] for one in components]

    def _plain(self, value: Any) -> str:
        text = str(value)
        return str(self._parsed.unescape(text)) if self._parsed.esc in text else text.strip()

    def ack(self, code: str, at: datetime, error: FhirError | None = None) -> bytes:
        """The acknowledgement: AA, AE or AR, with place and reason in an ERR segment."""
        ack = self._parsed.create_ack(code, message_id=f"{self.control_id[:180]}A")
        ack.segment("MSH").assign_field(at.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000"), 7)
        ack.segment("MSH").assign_field("UNICODE UTF-8", 18)
        if error is not None:
            place = error.issues[0].expression or ""
            place = place if _PLACE.fullmatch(place) else ""
            number = error.error if isinstance(error, MessageWrong) else "200" if isinstance(error, NotSupported) else "207"
            segment, _, field = place.partition("-")
            err = ack.create_segment([ack.create_field(["ERR"])])
            err.assign_field(
                f"{segment}{ack.separators[3] if field else ''}{'1' + ack.separators[3] + field if field else ''}", 2
            )
            err.assign_field(number, 3)
            err.assign_field("E", 4)
            err.assign_field(ack.escape(str(error))[:250], 8)
            ack.append(err)
        return str(ack).encode()


def part(repetition: Repetition, component: int, sub: int = 1) -> str:
    """A component, or a part of one; "" when it is not there."""
    if component > len(repetition):
        return ""
    found = repetition[component - 1]
    return found[sub - 1] if sub <= len(found) else ""


def refusal(at: datetime, error: MessageWrong) -> bytes:
    """The answer to what is no message, so that nothing of it can be named."""
    stamp = at.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
    return f"MSH|^~\\&|||||{stamp}||ACK|{stamp}|P|2.5\rMSA|AR|\rERR||{error.place}|{error.error}|E||||{error}\r".encode()


def moment(text: str, zone: str) -> datetime | None:
    """A time to the second or less, in UTC; without an offset it is of the sender's zone. None for what is no time."""
    found = _TIME.fullmatch(text)
    if found is None or found[3] is None:
        return None
    year, month, day, hour, minute, second = (int(found[number] or 0) for number in range(1, 7))
    try:
        local = datetime(year, month, day, hour, minute, second, tzinfo=ZoneInfo(zone))
        return (datetime.strptime(f"{local:%Y%m%d%H%M%S}{found[7]}", "%Y%m%d%H%M%S%z") if found[7] else local).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def fhir_time(text: str, zone: str, *, date_only: bool = False) -> str | None:
    """A time as FHIR writes it, as exact as it is given; None for what is none."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    if date_only or found[4] is None:
        parts = [one for one in (found[1], found[2], found[3]) if one]
        try:
            datetime(*(int(one) for one in [*parts, "01", "01"][:3]))  # type: ignore[arg-type]
        except ValueError:
            return None
        return "-".join(parts)
    at = moment(text, zone)
    return None if at is None else at.astimezone(ZoneInfo(zone)).isoformat(timespec="seconds")


def whose(message: Message, sendings: Sequence[tuple[str, Hl7v2]]) -> str | None:
    """The name of the partner whose message it is, by MSH-3 and MSH-4."""
    application, facility = message.text("MSH", 3), message.text("MSH", 4)
    for name, section in sendings:
        for one in section.sending:
            if one.application in (None, application) and one.facility in (None, facility):
                return name
    return None


def _decoded(raw: bytes) -> str:
    """The text, by the character set that MSH-18 names."""
    head = raw[:2000].split(b"\r")[0].split(b"\n")[0]
    separator = head[3:4]
    fields = head.split(separator) if separator else []
    named = fields[17].split(b"~")[0].decode("ascii", "replace").strip().upper() if len(fields) > 17 else ""
    if named not in _CHARSETS:
        raise MessageWrong("The character set is none that the hub reads; send UNICODE UTF-8", "MSH-18", "102")
    try:
        return raw.decode(_CHARSETS[named])
    except UnicodeDecodeError as error:
        raise MessageWrong(f"Byte {error.start} cannot be read in the character set of MSH-18", "MSH-18", "102") from None
