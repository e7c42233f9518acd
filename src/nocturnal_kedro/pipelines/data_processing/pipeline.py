"""Wiring of data_processing."""

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.data_processing import nodes


def create_pipeline() -> Pipeline:
    """From the raw files to the corpus and its frozen tables; shared by every experiment."""
    return Pipeline(
        [
            node(
                nodes.grid_readings,
                ["readings", "params:grid"],
                ["series", "series_tally"],
                name="grid_readings",
            ),
            node(nodes.split_people, ["series", "params:splits"], "splits", name="split_people"),
            node(
                nodes.assemble_corpus,
                ["series", "params:physiology"],
                "corpus",
                name="assemble_corpus",
            ),
            node(
                nodes.freeze_origins,
                ["corpus", "splits", "series_tally", "params:task"],
                ["origins", "quality"],
                name="freeze_origins",
            ),
        ],
        tags="data_processing",
    )
