"""HTTP, for tools that are not Python. Nothing here runs unless somebody starts it."""
