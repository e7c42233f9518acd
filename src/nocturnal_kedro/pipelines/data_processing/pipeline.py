"""Wiring of data_processing."""

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.data_processing import nodes


def create_pipeline() -> Pipeline:
    """From the raw files to the corpus and its frozen tables; shared by every experiment."""
    return Pipeline(
        [
            node(
                nodes.prepare_parts,
                ["readings", "params:grid"],
                "prepared",
                name="prepare_parts",
            ),
            node(
                nodes.join_parts,
                ["prepared", "params:cohort"],
                ["series", "series_tally", "overlaps", "made_from"],
                name="join_parts",
            ),
            node(nodes.split_people, ["series", "params:splits"], "splits", name="split_people"),
            node(
                nodes.assemble_corpus,
                ["series", "params:physiology", "made_from"],
                "corpus",
                name="assemble_corpus",
            ),
            node(
                nodes.freeze_origins,
                ["corpus", "splits", "series_tally", "params:task"],
                ["origins", "tally"],
                name="freeze_origins",
            ),
            node(
                nodes.describe_nights,
                ["corpus", "origins", "params:task"],
                "outcomes",
                name="describe_nights",
            ),
            node(
                nodes.measure_quality,
                ["series", "corpus", "series_tally", "overlaps"],
                "quality",
                name="measure_quality",
            ),
            node(
                nodes.audit_data,
                [
                    "readings",
                    "series",
                    "corpus",
                    "splits",
                    "origins",
                    "overlaps",
                    "params:task",
                    "params:physiology",
                    "params:grid",
                    "params:audit",
                ],
                "audit",
                name="audit_data",
            ),
        ],
        tags="data_processing",
    )
