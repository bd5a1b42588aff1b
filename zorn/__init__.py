"""zorn: Zero-Order Recurrent Networks, trained with forward passes only."""

__version__ = "0.1.0"
