"""Task families, in the files of their bodies; each ends in what the rest needs to know."""
