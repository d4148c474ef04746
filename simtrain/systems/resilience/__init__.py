"""Training that survives failures."""
