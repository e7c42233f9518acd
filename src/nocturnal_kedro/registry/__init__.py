"""What runs gave, for good: a folder of each, all of them in a tracking store, and models by name."""
