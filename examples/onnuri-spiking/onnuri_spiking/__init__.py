"""A plug-in for Onnuri: the family `spiking_classifier`."""
