"""Decision records: taken off the hot path, kept, searched and added up."""

from waypost.validator.records.base import BY_DEFAULT, Encoded, RecordFilter, RecordStore
from waypost.validator.records.sink import RecordSink
from waypost.validator.records.sqlite import SqliteRecordStore
from waypost.validator.records.totals import DIMENSIONS, Dimension, RecordStats, StatsRow

__all__ = [
    "BY_DEFAULT",
    "DIMENSIONS",
    "Dimension",
    "Encoded",
    "RecordFilter",
    "RecordSink",
    "RecordStats",
    "RecordStore",
    "SqliteRecordStore",
    "StatsRow",
]
