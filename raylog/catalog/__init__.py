"""Which versions exist, what they are made of, and which nodes hold them."""
