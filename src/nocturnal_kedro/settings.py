"""Kedro's project settings: https://docs.kedro.org."""

from nocturnal_kedro.hooks import (
    ClearErrors,
    Cluster,
    EntryChecks,
    RunRecord,
    Summary,
)

HOOKS = (EntryChecks(), RunRecord(), Cluster(), Summary(), ClearErrors())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
