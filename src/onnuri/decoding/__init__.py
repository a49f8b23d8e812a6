"""Writing token by token: the loop, what is chosen at each place, and what hastens or binds it.

A family says how its nets write (`Writing` in `family.py`); everything here serves all that do. A token is a function of
what a net says is next, of the rules that an answer keeps, and of noise that belongs to its record and its place. So the
same answer is written in a batch of any size, on any runtime, with a draft model or without.
"""

from .batches import answer_of, padded, placed, shortened
from .choosing import Chooser, Sampling
from .loop import by_library, written

__all__ = ["Chooser", "Sampling", "answer_of", "by_library", "padded", "placed", "shortened", "written"]
