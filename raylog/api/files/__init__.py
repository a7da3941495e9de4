"""Artifacts as files: names, folders, reading and writing; `raylog.api.filesystem` makes a file system of them."""
