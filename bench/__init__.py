"""`make bench`: compares the copy with PostHog's statement and a plain INSERT SELECT, on one machine, in one run."""
