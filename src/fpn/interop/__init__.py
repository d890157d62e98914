"""The field's other detectors: their weights put into ours, ours into torchvision's.

A file tells weights, not what is done with them: that stands in `configs/conventions`, once for the command
line and for the loaders here.
"""
