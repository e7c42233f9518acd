"""What runs gave, for good: a folder of each, a tracking store of all, and models by name."""
