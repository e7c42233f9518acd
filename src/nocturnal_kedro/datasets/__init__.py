"""The few Kedro datasets of our own: raw sources, prepared parts, the corpus, fitted artifacts."""

from nocturnal_kedro.datasets.artifact import ArtifactDataset
from nocturnal_kedro.datasets.corpus import CorpusDataset
from nocturnal_kedro.datasets.prepared import PreparedDataset
from nocturnal_kedro.datasets.saved_scores import SavedScoresDataset
from nocturnal_kedro.datasets.source import SourceDataset
from nocturnal_kedro.datasets.stores import (
    AnswersDataset,
    TrainedDataset,
    UnfinishedDataset,
)
from nocturnal_kedro.datasets.versions import DataVersionsDataset

__all__ = [
    "AnswersDataset",
    "ArtifactDataset",
    "CorpusDataset",
    "DataVersionsDataset",
    "PreparedDataset",
    "SavedScoresDataset",
    "SourceDataset",
    "TrainedDataset",
    "UnfinishedDataset",
]
