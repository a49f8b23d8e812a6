"""Runtimes: what executes a module. One file each; each knows its own artefact in a model folder."""
