"""A fitted model that is saved no longer needs the checkpoints of its training."""

from __future__ import annotations

import shutil
from typing import Any

from kedro.framework.hooks import hook_impl


class FinishedTrainings:
    """Removes what kept a training from being lost, once its model is on disk."""

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        if dataset_name.endswith(".model") and data.record.get("checkpoints"):
            shutil.rmtree(data.record["checkpoints"], ignore_errors=True)
