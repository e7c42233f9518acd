from nocturnal_kedro.pipelines.evaluation.pipeline import create_pipeline, create_sweep

__all__ = ["create_pipeline", "create_sweep"]
