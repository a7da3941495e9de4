"""Where key-encryption keys live. Only modules in here may talk to a key management service."""
