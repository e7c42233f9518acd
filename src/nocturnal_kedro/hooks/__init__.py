"""Kedro's hooks: what is checked before a run, what is recorded of it, how a mistake is told."""

from nocturnal_kedro.hooks.entry import ClearErrors, EntryChecks
from nocturnal_kedro.hooks.record import RunRecord, Summary

__all__ = ["ClearErrors", "EntryChecks", "RunRecord", "Summary"]
