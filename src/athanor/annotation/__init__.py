"""Labels by people: items out to annotation tools and back, how far people agree, who is right, how many are wrong."""
