from .adapters import METHODS as METHODS
