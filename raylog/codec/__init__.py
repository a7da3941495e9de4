"""Content to sealed shards and back. FORMAT.md specifies the bytes; keys are passed in; nothing here does I/O."""
