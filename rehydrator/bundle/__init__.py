"""A bundle in code: the manifest, opening, rehydrating, building. bundle/ at the top of the
repository is the same noun as a thing: its format, schema and golden vectors."""
