"""The flight deck: one HTML page, with everything in it, of what people would rather look at."""

from replica_platform.app.deck.page import deck_page, write_deck
from replica_platform.app.deck.serve import serve_deck

__all__ = ["deck_page", "serve_deck", "write_deck"]
