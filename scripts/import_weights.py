"""Makes a member of a torchvision or timm state dict."""

from lensjax.commands import import_weights
from lensjax.config import run_script

if __name__ == "__main__":
    run_script(import_weights.main)
