"""What `put` and `seal` read: content types, formats, and one reader per kind of source."""
