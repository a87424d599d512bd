"""A config -> the parts of a run -> the loop -> checkpoints."""
