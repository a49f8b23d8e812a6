"""What can be done to a model, one file each. An operation never names a family."""
