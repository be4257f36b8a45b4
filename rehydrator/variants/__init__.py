"""Every platform's published files from one canonical image."""
