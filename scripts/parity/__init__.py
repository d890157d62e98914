"""Ours beside another's own code, with the same weights, images and samples."""
