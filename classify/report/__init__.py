"""A page to look at: one self-contained HTML file about a run, ``report.html``.

Nothing is fetched and nothing but the page's own script runs: names of files and classes are text
wherever they stand, and the page's policy forbids every other script.
"""
