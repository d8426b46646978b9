"""Writes decision records into files that other programs read: JSON lines, CSV, Parquet.

What callers sent is in some fields, so no cell of a CSV may begin a spreadsheet's formula.
"""

import csv
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord, decode_record, fate_of

__all__ = ["FORMATS", "Format", "write"]

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}

# The fields that make a table, with their types as Arrow names them; the rest is in the JSON.
COLUMNS: dict[str, str] = {
    "id": "string",
    "at_ms": "int64",
    "verdict": "string",
    "reason": "string",
    "fate": "string",
    "http_status": "int64",
    "subject": "string",
    "tenant": "string",
    "tier": "string",
    "account": "string",
    "manifest_version": "int64",
    "manifest_digest": "string",
    "route": "string",
    "chosen": "string",
    "model": "string",
    "attempts": "int64",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "reserved_nusd": "int64",
    "cost_nusd": "int64",
    "baseline_cost_nusd": "int64",
    "ttft_ms": "float64",
    "duration_ms": "float64",
    "streamed": "bool_",
    "repeats": "string",
    "trace_id": "string",
}
MOST = 2**63 - 1

# What makes a cell a formula, and what a spreadsheet skips before it (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write(pages: Iterator[Sequence[bytes]], path: Path, form: Format) -> int:
    """Write all of ``pages`` to ``path``; return how many records that were.

    Raises:
        StoreError: ``export_unavailable``, the extra for Parquet is not installed.
        OSError: the file cannot be written.
    """
    match form:
        case "jsonl":
            count = 0
            with path.open("wb") as file:
                for page in pages:
                    file.writelines(body + b"\n" for body in page)
                    count += len(page)
            return count
        case "csv":
            return _write_csv(pages, path)
        case "parquet":
            return _write_parquet(pages, path)


def _row(record: DecisionRecord) -> dict[str, Any]:
    usage = record.usage
    row = {name: getattr(record, name, None) for name in COLUMNS}
    row["fate"] = fate_of(record)
    row["attempts"] = len(record.attempts)
    row["input_tokens"] = None if usage is None else usage.input_tokens
    row["output_tokens"] = None if usage is None else usage.output_tokens
    return row


def _write_csv(pages: Iterator[Sequence[bytes]], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for page in pages:
            for body in page:
                row = _row(decode_record(body))
                writer.writerow({name: _cell(value) for name, value in row.items()})
            count += len(page)
    return count


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else "�" for c in value)
    return "'" + text if text.startswith(_FORMULA) or value.startswith(_FORMULA) else text


def _write_parquet(pages: Iterator[Sequence[bytes]], path: Path) -> int:
    try:
        arrow: Any = import_module("pyarrow")  # ships no types
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise StoreError(
            "Parquet needs the extra: pip install 'waypost[parquet]'", code="export_unavailable"
        ) from None
    fields = [(name, getattr(arrow, kind)()) for name, kind in COLUMNS.items()]
    schema = arrow.schema([*fields, ("record", arrow.string())])
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for page in pages:
            rows: list[dict[str, Any]] = []
            for body in page:
                row = _row(decode_record(body))
                for name, value in row.items():
                    if isinstance(value, int):
                        row[name] = min(value, MOST)
                rows.append({**row, "record": body.decode()})
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            count += len(page)
    return count
