"""Train, fine-tune, evaluate and compare time-series foundation models of glucose at night."""

__version__ = "0.1.0"
