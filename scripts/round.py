"""Scores, asks what to grade, learns from the grades, and scores again."""

from lensjax.launch import run_script

if __name__ == "__main__":
    run_script("round")
