"""What a model computes layer by layer, and whether an exported or compiled one computes the same."""
