"""Kinds of model, one file each. A family states facts about itself and never names an operation."""
