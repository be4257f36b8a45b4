"""The nouns, without any outside thing: errors, digests, readers, ops, canonical JSON, packs."""
