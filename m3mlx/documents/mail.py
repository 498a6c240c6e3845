"""E-mail to text: who, to whom, when, what about, and the body. Attachments are only named."""

from __future__ import annotations

import mailbox
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from . import html
from .text import decode

HEADERS = ("From", "To", "Cc", "Date")


def read_message(path: Path, data: bytes) -> str:
    return _render(path, message_from_bytes(data, policy=policy.default))


def read_box(path: Path, data: bytes) -> str:
    box = mailbox.mbox(path, create=False)
    try:
        return "\n\n".join(read_message(path, box.get_bytes(key)) for key in box.iterkeys())
    finally:
        box.close()


def _render(path: Path, message: EmailMessage) -> str:
    lines = [f"# {message['Subject'] or 'Mail without a subject'}"]
    lines += [f"{name}: {message[name]}" for name in HEADERS if message[name]]
    names = [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]
    if names:
        lines.append(f"Attachments: {', '.join(names)}")
    return "\n".join(lines) + "\n\n" + _body(path, message)


def _body(path: Path, message: EmailMessage) -> str:
    for kind in ("plain", "html"):  # the plain part of some mails is there, and blank
        part = message.get_body(preferencelist=(kind,))
        if part is None:
            continue
        # get_content() would put question marks where the named encoding is the wrong one
        content = part.get_payload(decode=True) or b""
        body = decode(path, content, part.get_content_charset() or "")
        if body := html.render(body) if kind == "html" else body.strip():
            return body
    return ""
