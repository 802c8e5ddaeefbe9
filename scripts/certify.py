"""Says how many false positives the list of a run holds at most, wherever it is cut."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("certify")
