"""The four stages; an experiment is their sum."""
