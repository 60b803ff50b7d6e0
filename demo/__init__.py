"""The demo on one machine without containers: embedded databases, seed data, a model of PostHog's writes and reads."""
