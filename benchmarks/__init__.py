"""Times lensjax and PyTorch side by side on the same weights and images. Not installed.

`cases` says what is measured, `compare` measures it, `worker` runs one program (of `ours`,
`reading` or `torch_programs`) in a process of its own, `command` prints and writes the tables.
"""
