"""Whether braiding is worth its cost: experiments beside everything simpler, with the same data and parameters."""
