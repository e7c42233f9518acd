"""Kedro's hooks: what is checked before a run, where it runs, what is recorded and told of it."""

from nocturnal_kedro.hooks.cluster import Cluster
from nocturnal_kedro.hooks.entry import ClearErrors, EntryChecks
from nocturnal_kedro.hooks.record import RunRecord, Summary
from nocturnal_kedro.hooks.tracking import RunFolders

__all__ = ["ClearErrors", "Cluster", "EntryChecks", "RunFolders", "RunRecord", "Summary"]
