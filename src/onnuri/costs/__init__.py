"""What work costs, in operations, bytes and seconds.

Counted (`count.py`, `flops.py`), measured on this machine (`peaks.py`), foretold for it (`tasks.py`, `efficiency.py`) or for a
device that is known by its data sheet (`targets.py`, `targets.yaml`, `roofline.py`).
"""
