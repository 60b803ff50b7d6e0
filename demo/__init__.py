"""One machine, no containers: embedded engines, a model of PostHog's write and read path, and seed data."""
