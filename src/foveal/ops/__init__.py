"""Functions on tensors. Each has its literal form in ``reference``; the others compute the same, faster."""
