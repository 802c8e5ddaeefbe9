"""Times lensjax and PyTorch side by side on the same weights and images, and scores real lenses.
Not installed."""
