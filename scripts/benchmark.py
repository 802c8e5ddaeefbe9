"""Times lensjax and its peers side by side, and compares what they say."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("benchmark")
