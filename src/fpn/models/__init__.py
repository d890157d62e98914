"""The network, its targets, its losses and the selection of its boxes."""
