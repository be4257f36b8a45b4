"""Images served to other programs, straight from what a bundle's recipes make."""
