"""What members want of their cutouts in these tests."""

from lensjax.data.preprocess import Preprocessing


def preprocessing(size=16, scale=0.2, bands=("g", "r"), stretch="asinh", mean=0.0, std=1.0):
    count = len(bands)
    return Preprocessing(bands, size, scale, stretch, 3.0, (mean,) * count, (std,) * count)
