"""Decision records: taken off the hot path, kept, searched and added up."""

from waypost.validator.records.base import (
    RecordFilter,
    RecordStats,
    RecordStore,
    StatsRow,
)
from waypost.validator.records.sink import RecordSink
from waypost.validator.records.sqlite import SqliteRecordStore

__all__ = [
    "RecordFilter",
    "RecordSink",
    "RecordStats",
    "RecordStore",
    "SqliteRecordStore",
    "StatsRow",
]
