"""Tries to break Stepwell: damaged and crafted files, nonsense command lines, kills, threads.

`make fuzz` runs all of it and writes the table of `docs/reliability.md`. One process imports the
package and forks for every try, so that a try costs its own work alone.
"""
