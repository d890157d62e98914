"""Ours against a peer on the same work: a module for each subject, the first three for measuring."""
