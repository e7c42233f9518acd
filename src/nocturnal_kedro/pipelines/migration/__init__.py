from nocturnal_kedro.pipelines.migration.pipeline import create_pipeline

__all__ = ["create_pipeline"]
