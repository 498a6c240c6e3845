"""Workbooks (XLSX, XLS, XLSB, ODS) to text: each row stands alone, below the name of its sheet."""

from __future__ import annotations

import io
from datetime import datetime, time
from pathlib import Path

from ..errors import DocumentError
from .archive import OLE
from .data import describe
from .text import Note

MOST_NAMED = 5_000_000  # characters of a sheet; rows behind them come without names of columns


def read(path: Path, data: bytes, note: Note) -> str:
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError

    try:
        workbook = CalamineWorkbook.from_filelike(io.BytesIO(data))
    except PasswordError as error:
        raise DocumentError(path, "is encrypted; save it without a password") from error
    except CalamineError as error:
        if data.startswith(OLE):
            reason = "is encrypted, or of an old format; save it as .xlsx without a password"
            raise DocumentError(path, reason) from error
        raise
    sheets = []
    for name in workbook.sheet_names:
        try:
            sheet = workbook.get_sheet_by_name(name)
        except Exception as error:  # such as a sheet that is nothing but a chart
            note(f"sheet {name} is not read ({error})")
            continue
        rows = (list(map(_cell, row)) for row in sheet.iter_rows())
        if lines := list(filter(None, describe(rows, MOST_NAMED))):
            sheets.append("\n".join((f"# {name}", *lines)))
    return "\n\n".join(sheets)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return " ".join(str(value).split())
