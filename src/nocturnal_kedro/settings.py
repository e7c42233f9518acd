"""Kedro's project settings: https://docs.kedro.org."""

from nocturnal_kedro.hooks import (
    ClearErrors,
    Cluster,
    EntryChecks,
    RunFolders,
    RunRecord,
    Summary,
)

# Of those that come last at the end of a run, the later in this line is the last.
HOOKS = (EntryChecks(), RunRecord(), Cluster(), Summary(), RunFolders(), ClearErrors())

CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
}
