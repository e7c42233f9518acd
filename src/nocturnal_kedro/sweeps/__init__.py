"""Sweeps: many variants of one experiment, trained alike and tested on the same nights."""
