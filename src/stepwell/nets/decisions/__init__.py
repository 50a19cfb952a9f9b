"""Parts of networks that decide, for each example, which of several ways it takes.

A decision is a row of scores, one for each choice. `gates` make the scores, `estimators` turn them into
choices with a gradient, and `executor` runs each example only where it chose to go.
"""
