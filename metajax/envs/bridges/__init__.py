"""Environments of other packages as task families, a file for each package."""
