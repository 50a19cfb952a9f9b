"""The parts of every study: arms, seeds, claims, verdicts and pages."""
