"""`make bench`: the copy against PostHog's statement and a plain INSERT SELECT, on one machine, in one run."""
