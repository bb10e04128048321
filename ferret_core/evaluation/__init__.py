"""How good a checkpoint is, on questions it has never seen."""
