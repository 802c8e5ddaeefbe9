"""Makes a member of a torchvision or timm state dict."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("import_weights")
