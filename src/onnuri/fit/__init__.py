"""The one training loop, `loop.py`, and what it is made of: batches, descent, speed, the state kept, the doctor."""
