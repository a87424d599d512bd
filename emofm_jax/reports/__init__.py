"""Pages and charts of a sweep or a run."""
