"""What the report of a sweep says, part by part."""
