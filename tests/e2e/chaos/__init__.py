"""A package, so that its platform ends with it."""
