"""Published training systems, one file per paper with its baseline beside it."""
