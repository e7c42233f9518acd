"""The one training loop, and the fitting of models and baselines around it."""
