"""Colours that the colour-blind tell apart: Okabe and Ito's, of https://jfly.uni-koeln.de/color."""

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
YELLOW, BLACK = "#F0E442", "#000000"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Those that stand out from a white page and from a dark one."""
