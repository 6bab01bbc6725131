"""A package of our own, as installed ones have a top-level `tests` too."""
