"""Small readable networks for the demo, the tests and the benchmarks.

Each file holds one family, with the submodule names of the library people know it from
(torchvision, timm, Hugging Face). ``digits`` has versions that train in seconds.
"""
