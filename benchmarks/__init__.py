"""The measured comparison with other tools; see README.md beside this file."""
