"""Wiring of data_processing."""

from kedro.pipeline import Pipeline, node

from nocturnal_kedro.pipelines.data_processing import nodes
from nocturnal_kedro.pipelines.experiments import Experiment


def create_pipeline(experiment: Experiment) -> Pipeline:
    """From the raw files to the corpus, which every experiment shares, and its frozen tables."""
    return _create_corpus() + _freeze_tables(experiment)


def _create_corpus() -> Pipeline:
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
                nodes.measure_quality,
                ["series", "corpus", "series_tally", "overlaps"],
                "quality",
                name="measure_quality",
            ),
        ],
        tags="data_processing",
    )


def _freeze_tables(experiment: Experiment) -> Pipeline:
    """What follows from the task: a namespace of its own where the experiment has its own."""
    task, shared = experiment.parameter("task"), experiment.shared
    namespace = experiment.name if "task" in experiment.own else None
    return Pipeline(
        [
            node(
                nodes.freeze_origins,
                ["corpus", "splits", "series_tally", task],
                [shared("origins"), shared("tally")],
                name="freeze_origins",
                namespace=namespace,
            ),
            node(
                nodes.describe_nights,
                ["corpus", shared("origins"), task],
                shared("outcomes"),
                name="describe_nights",
                namespace=namespace,
            ),
            node(
                nodes.audit_data,
                [
                    "readings",
                    "series",
                    "corpus",
                    "splits",
                    shared("origins"),
                    "overlaps",
                    task,
                    "params:physiology",
                    "params:grid",
                    "params:audit",
                ],
                shared("audit"),
                name="audit_data",
                namespace=namespace,
            ),
        ],
        tags="data_processing",
    )
