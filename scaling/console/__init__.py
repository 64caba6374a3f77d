"""The console: runs, sweeps, laws and artifacts in a browser, read from their files and never written.

    python -m scaling.console --runs=runs/ --artifact=artifacts/student

One file a concern: `index` finds what there is, `pages` says what a page shows, `figures` draws, `app` answers and guards.
"""
