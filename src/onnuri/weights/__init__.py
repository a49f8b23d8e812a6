"""A net seen as a list of weight matrices, and all that can be done to a matrix whatever net it stands in.

`matrices.py` is the noun: it finds them. `attach.py` puts a function on one while it stays stored as it was: a low-rank
update (`lowrank.py`, on disk `adapters.py` and `peft_format.py`), packed codes (`packed.py`, `packed_file.py`,
`compressed_tensors.py`, `number_formats.py`, while training `fake_quantization.py`), two factors (`factored.py`, `ranks.py`).
How codes and zeros are chosen by what records show: `calibration.py` and `replay.py`, `gptq.py`, `awq.py`, `sensitivity.py`,
`ranking.py`. Whole units: `units.py`. Two models: `merging.py`.
"""
