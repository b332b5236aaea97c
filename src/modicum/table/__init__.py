"""What may be chosen and what it costs: the menu, what was found, how harm is predicted, and the table made of them."""
