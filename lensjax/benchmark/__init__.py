"""The benchmark: lensjax and its peers side by side, each in a process of its own.

`cases` says what is measured and `arena` measures it; `ours`, `torch_peers`, `onnx_peers` and
`plain_flax` do the work, one of them in each `worker`; `table` shows the result.
"""
