"""The few Kedro datasets of our own: raw sources, the corpus, and fitted artifacts."""

from nocturnal_kedro.datasets.artifact import ArtifactDataset
from nocturnal_kedro.datasets.corpus import CorpusDataset
from nocturnal_kedro.datasets.source import SourceDataset

__all__ = ["ArtifactDataset", "CorpusDataset", "SourceDataset"]
