from nocturnal_kedro.pipelines.training.pipeline import create_pipeline, create_sweep

__all__ = ["create_pipeline", "create_sweep"]
