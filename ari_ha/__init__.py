"""Call survival and high availability for Asterisk contact centers."""

__version__ = "0.1.0"
