"""Ours against a peer on the same work: a module for each subject, the others for measuring."""
