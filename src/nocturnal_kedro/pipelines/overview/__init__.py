from nocturnal_kedro.pipelines.overview.pipeline import create_pipeline

__all__ = ["create_pipeline"]
