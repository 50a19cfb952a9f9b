"""What every study is made of: arms, seeds, claims, verdicts and pages."""
