"""Container images: layers, manifests as bytes, layouts, references, in-band signatures."""
