"""A fitted model in use: recent readings of one person in, a night card out."""
