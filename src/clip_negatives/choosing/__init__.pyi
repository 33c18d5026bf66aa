from .choice import Choice, read_choice
from .menu import Candidate, menu_of
from .run import choose

__all__ = ["Candidate", "Choice", "choose", "menu_of", "read_choice"]
