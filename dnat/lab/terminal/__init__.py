"""Progress and results on a terminal: live bars where someone watches, plain lines elsewhere."""
