"""Folders of script-based repositories -> models of the registry, and a table of what became."""

from __future__ import annotations

import pandas as pd

from nocturnal_kedro.registry.migration import Migration, migrate
from nocturnal_kedro.registry.models import Registry
from nocturnal_kedro.registry.store import default_uri
from nocturnal_kedro.registry.tracking import Tracking
from nocturnal_kedro.training.trained import Trained


def migrate_ttm(
    legacy_root: str, migration: Migration, tracking: Tracking, migrated: Trained
) -> pd.DataFrame:
    """One row per folder; nothing is kept or registered unless `migration.apply` says so."""
    registry = Registry(tracking.uri or default_uri(migrated.root.parents[1]))
    return migrate(legacy_root, migration, migrated, registry)
