from nocturnal_kedro.pipelines.reporting.pipeline import create_pipeline, create_sweep

__all__ = ["create_pipeline", "create_sweep"]
