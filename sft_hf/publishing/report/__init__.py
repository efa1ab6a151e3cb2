"""report.html of one run, and the page that compares several: HTML without scripts, in one file each."""
