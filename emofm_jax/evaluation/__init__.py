"""Numbers about predictions; numpy and scipy only."""
