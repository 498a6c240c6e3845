"""E-mail to text: subject, sender, recipients, date and body; attachments are only named."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from . import html
from .text import Note, decode

HEADERS = ("From", "To", "Cc", "Date")
FROM_LINE = re.compile(rb"^From .*\n", re.MULTILINE)  # begins every message of a mailbox


def read_mailbox(path: Path, data: bytes, note: Note) -> str:
    return "\n\n".join(read_message(path, message, note) for message in FROM_LINE.split(data)[1:])


def read_message(path: Path, data: bytes, note: Note) -> str:
    message = message_from_bytes(data, policy=policy.default)
    lines = [f"# {message['Subject'] or 'Mail without a subject'}"]
    lines += [f"{name}: {message[name]}" for name in HEADERS if message[name]]
    names = [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]
    if names:
        lines.append(f"Attachments: {', '.join(names)}")
    return "\n".join(lines) + "\n\n" + _body(path, message, note)


def _body(path: Path, message: EmailMessage, note: Note) -> str:
    for kind in ("plain", "html"):  # the plain part of some mails is blank
        part = message.get_body(preferencelist=(kind,))
        if part is None:
            continue
        # get_content() would put question marks where the named encoding is the wrong one
        content = part.get_payload(decode=True)
        charset = part.get_content_charset() or ""
        body = decode(path, content if isinstance(content, bytes) else b"", note, charset)
        if body := html.render(body) if kind == "html" else body.strip():
            return body
    return ""
