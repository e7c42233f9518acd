"""Wiring of the migration: one node, which asks for no data of people."""

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.migration import nodes


def create_pipeline() -> Pipeline:
    """Every model below `legacy_root` in one table, and, if asked, in the registry."""
    migrate_ttm = node(
        nodes.migrate_ttm,
        ["params:legacy_root", "params:migration", "params:tracking", "migrated"],
        "migration",
        name="migrate_ttm",
    )
    return Pipeline([migrate_ttm], tags="migrate_ttm")
