"""E-mail to text: every text of it in order, and attachments of the formats that are read."""

from __future__ import annotations

import re
from base64 import b64decode
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from ..errors import DocumentError
from . import html
from .text import Note, clean, decode

HEADERS = ("From", "To", "Cc", "Date")
# begins a message of a mailbox: first of all, with a time, or behind an empty line and before a
# header of mails; a sentence may begin with the same word
FROM_LINE = re.compile(
    rb"(?:\A(?:\xef\xbb\xbf)?\s*From [^\n]*"
    rb"|(?:(?<=\n\n)|(?<=\n\r\n))From [^\n]*(?:\d:\d\d[^\n]*"
    rb"|(?=\n>?(?i:from|to|cc|date|subject|sender|received|return-path|reply-to|message-id"
    rb"|mime-version|delivered-to|status|content-\w+|x-[\w-]+):))"
    rb"|(?<=\n)From [^\n]{1,200}\d:\d\d[^\n]{0,40} \d{4}[^\n]{0,40})\n(?=>?[!-9;-~]+:|\r?\n)"
)
HEAD = re.compile(rb"(?:\xef\xbb\xbf)?\s*")  # may stand before the first header
UUENCODED = re.compile(
    r"^begin [0-7]{3,4} (\S.{0,200})\n(?:[ -`]{1,62}\n)*+`?\n?end$", re.MULTILINE
)
ENRICHED = re.compile(r"<param>.*?</param>|<(?!<)[^<>]{1,60}>", re.DOTALL | re.IGNORECASE)
READ_AS = {"rtf": "rtf", "richtext": "rtf", "csv": "csv", "tab-separated-values": "tsv"}
LINE = 10_000  # bytes that tell how lines end
STUB = 200  # characters; a shorter text beside a page may only tell to look at the page
MOST_NESTED = 20  # mails in mails
CALENDAR = ("SUMMARY", "DTSTART", "DTEND", "LOCATION", "ORGANIZER", "ATTENDEE", "DESCRIPTION")


# reads an attachment by its name; None where its format is not read
ReadOther = Callable[[Path, bytes, Note], str | None]


def read_mailbox(path: Path, data: bytes, note: Note, read_other: ReadOther) -> str:
    """Read all mails; a bad one is named by its number, and the others are read."""
    starts = [match.span() for match in FROM_LINE.finditer(data)]
    if not starts:
        raise DocumentError(path, "is no mailbox: no line of it begins a mail with 'From '")
    ends = [start for start, _ in starts[1:]] + [len(data)]
    mails = []
    for number, ((_, start), end) in enumerate(zip(starts, ends, strict=True), 1):

        def note_mail(text: str, number: int = number) -> None:
            note(f"mail {number}: {text}")

        try:
            content = re.sub(rb"^>(>*From )", rb"\1", data[start:end], flags=re.MULTILINE)
            mails.append(read_message(path, content, note_mail, read_other))
        except Exception as error:  # the library raises whatever it likes
            note_mail(f"cannot be read ({error!r})")
    return "\n\n".join(mails)


def read_message(path: Path, data: bytes, note: Note, read_other: ReadOther) -> str:
    return _Reading(path, note, read_other).render(_parse(data), 1)


def read_stored(path: Path, data: bytes, note: Note, read_other: ReadOther) -> str:
    """Read a mail as Apple Mail keeps it: behind its length, and before its settings."""
    length, _, rest = data.partition(b"\n")
    return read_message(path, rest[: int(length)], note, read_other)


def _parse(data: bytes) -> Message:
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").encode()
    data = data[HEAD.match(data).end() :]  # type: ignore[union-attr]  # it matches nothing too
    if b"\n" not in data[:LINE]:
        data = data.replace(b"\r", b"\n")
    elif b"\r\r\n" in data[:LINE]:
        data = data.replace(b"\r\r\n", b"\n")
    return message_from_bytes(data, policy=policy.default)


def read_page(path: Path, data: bytes, note: Note, read_other: ReadOther) -> str:
    """Read a web page that was saved as a mail of its parts (MHTML)."""
    message = _parse(data)
    reading = _Reading(path, note, read_other)
    pages = [part for part in message.walk() if part.get_content_type() == "text/html"]
    return reading.content(pages[0]) if pages else reading.render(message, 1)


def read_calendar(path: Path, data: bytes, note: Note) -> str:
    return _calendar(decode(path, data, note))


@dataclass(frozen=True)
class _Reading:
    """The reading of one mail, with those inside of it."""

    path: Path
    note: Note
    read_other: ReadOther

    def render(self, message: Message, depth: int) -> str:
        lines = [f"{'#' * min(depth, 6)} {_header(message, 'Subject') or 'Mail without a subject'}"]
        lines += [f"{name}: {value}" for name in HEADERS if (value := _header(message, name))]
        unread: list[str] = []
        blocks = [text for text in self._parts(message, depth, unread) if text.strip()]
        if unread:
            lines.append(f"Attachments: {', '.join(unread)}")
        return "\n".join(lines) + "\n\n" + "\n\n".join(blocks)

    def _parts(self, message: Message, depth: int, unread: list[str]) -> Iterator[str]:
        """Yield the texts of a mail in order; names of what is not read go to ``unread``."""
        kind = message.get_content_type()
        payload = message.get_payload()
        inner = (
            [each for each in payload if isinstance(each, Message)]
            if message.is_multipart()
            else []
        )
        if kind == "message/rfc822":
            if depth == MOST_NESTED:
                self.note(f"mails within mails are left out below {MOST_NESTED} of them")
            else:
                yield from (self.render(_decoded(message, each), depth + 1) for each in inner)
        elif kind == "message/delivery-status":
            about = (f"{name}: {value}" for each in inner for name, value in each.raw_items())
            yield "\n".join(map(str, about))
        elif kind.startswith("multipart/") and not inner:  # without the boundary that it names
            yield self.content(message)
        elif message.is_multipart():
            for part in self._best(inner) if kind == "multipart/alternative" else inner:
                yield from self._parts(part, depth, unread)
        elif message.get_content_maintype() == "text" and not _is_attached(message):
            yield self.content(message)
        elif (text := self._attachment(message)) is not None:
            yield f"{'#' * min(depth + 1, 6)} {_name(message)}\n\n{text}"
        else:
            unread.append(_name(message) or kind)

    def _best(self, parts: list[Message]) -> list[Message]:
        """Choose of what says the same: the text, unless the page beside it says much more."""
        calendars = [part for part in parts if "calendar" in part.get_content_type()]
        texts = [part for part in parts if part.get_content_type() == "text/plain"]
        pages = [part for part in parts if part not in texts and part not in calendars]
        plain = self.content(texts[0]) if texts else ""
        if pages and len(plain) < STUB:
            quiet = _Reading(self.path, lambda text: None, lambda path, data, note: None)
            page = "\n".join(quiet._parts(pages[-1], MOST_NESTED, []))
            if not plain or len(page) > 4 * len(plain):
                texts = pages[-1:]
            elif len(page) > len(plain) and not _says(page, plain):
                return [texts[0], pages[-1], *calendars]
        return [*(texts[:1] or pages[-1:]), *calendars]

    def content(self, part: Message) -> str:
        """Return the text of one part."""
        # get_content() would put question marks where the named encoding is the wrong one
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        kind = part.get_content_subtype()
        if suffix := READ_AS.get(kind):
            with suppress(DocumentError):
                return self.read_other(Path(f"part.{suffix}"), content, self.note) or ""
        text = decode(self.path, content, self.note, part.get_content_charset() or "")
        if kind == "html":
            return html.render(text)
        if kind == "calendar":
            return _calendar(text)
        if kind == "enriched":
            text = ENRICHED.sub("", text).replace("<<", "<")
        return UUENCODED.sub(r"[Attachment: \1]", text.replace("\r\n", "\n")).strip()

    def _attachment(self, part: Message) -> str | None:
        """Read an attachment; None if its format is not read, or it is damaged."""
        name = _name(part)
        payload = part.get_payload(decode=True)
        if not name or not isinstance(payload, bytes):
            return None
        try:
            text = self.read_other(Path(name), payload, lambda why: self.note(f"{name}: {why}"))
            return None if text is None else clean(text, self.note)
        except Exception as error:  # a damaged attachment does not hide its mail
            self.note(f"attachment {name} is not read ({getattr(error, 'reason', repr(error))})")
            return None


def _decoded(message: Message, inner: Message) -> Message:
    """Return a mail in a mail, decoded where it was encoded, which is against the rules."""
    if str(message.get("Content-Transfer-Encoding", "")).strip().lower() == "base64":
        with suppress(ValueError):
            return _parse(b64decode(str(inner.get_payload()).encode("ascii", "replace")))
    return inner


def _says(page: str, plain: str) -> bool:
    """Return whether a page has most of the words of a text."""
    words = set(plain.split())
    return 2 * len(words & set(page.split())) > len(words)


def _is_attached(part: Message) -> bool:
    return bool(part.get_filename()) and part.get_content_disposition() != "inline"


def _name(part: Message) -> str:
    return " ".join((part.get_filename() or "").split())


def _header(message: Message, name: str) -> str:
    try:
        value = str(message[name] or "")
    except Exception:  # what the library refuses, such as a line break in a name
        raw = {key.lower(): value for key, value in message.raw_items()}
        value = str(make_header(decode_header(raw.get(name.lower(), ""))))
    return " ".join(value.split())


def _calendar(text: str) -> str:
    """Write the events of a calendar, a line for each thing said about them."""
    lines: list[str] = []
    for line in re.sub(r"\r?\n[ \t]", "", text).splitlines():  # long lines are folded
        key, _, value = line.partition(":")
        name = key.partition(";")[0].upper()
        if name == "BEGIN" and value.strip() in ("VEVENT", "VTODO", "VJOURNAL"):
            lines.append("")
        elif name in CALENDAR and value.strip():
            value = re.sub(r"\\([,;\\])", r"\1", value.replace("\\n", " ").replace("\\N", " "))
            shown = value.removeprefix("mailto:").removeprefix("MAILTO:").strip()
            if time := re.fullmatch(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)\d\dZ?)?", shown):
                shown = f"{time[1]}-{time[2]}-{time[3]}" + (
                    f" {time[4]}:{time[5]}" if time[4] else ""
                )
            if person := re.search(r";CN=\"?([^\";:]+)", key):
                shown = f"{person[1]} <{shown}>"
            words = {"DTSTART": "Start", "DTEND": "End"}.get(name, name.capitalize())
            lines.append(f"{words}: {shown}")
    return "\n".join(lines).strip()
