"""Conformance: suites of cases with independent expectations, run on any backend. ``effc conformance`` is its command.

| file | what it holds |
|---|---|
| ``suite.py`` | what a suite is: cases, how one is judged; the table of suites |
| ``ops.py``, ``onnx_nodes.py``, ``torch_samples.py`` | the suites |
| ``compare.py`` | what *right* means for arrays |
| ``pool.py``, ``worker.py`` | worker processes, so that a crash or a hang costs one sample |
| ``runner.py``, ``report.py``, ``command.py`` | running and resuming; tables; the command line |
"""
