"""A trained run as a function, and as an export."""
