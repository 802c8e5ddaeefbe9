"""What users type: each module holds the options of one script and carries them out."""
